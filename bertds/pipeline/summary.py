"""What the pipeline says at its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def _closing(work: Path, scores: dict[str, Any]) -> None:
    """Print the closing table, where everything lies, and what the model fills in."""
    from rich.console import Console
    from rich.table import Table

    from bertds.monitor.metrics_file import FILE
    from bertds.monitor.run_files import read_metrics

    console = Console(width=None if sys.stdout.isatty() else 100)
    table = Table(
        title="Scores on held-out documents (losses in nats; MLM masked LM, NSP next sentence)",
        title_justify="left",
    )
    for column in (
        "phase",
        "tokens",
        "MLM loss",
        "unigram entropy",
        "MLM accuracy",
        "NSP accuracy",
        "tokens/s",
    ):
        table.add_column(column, justify="right")
    for phase in ("phase1", "phase2"):
        values = scores[phase]
        speeds = sorted(
            line["tokens_per_second"]
            for line in read_metrics(work / phase / FILE).lines
            if "tokens_per_second" in line
        )
        table.add_row(
            phase[-1],
            str(values["sequence_length"]),
            f"{values['mlm_loss']:.3f}",
            f"{values['unigram_entropy']:.3f}",
            f"{values['mlm_accuracy']:.1%}",
            f"{values['nsp_accuracy']:.1%}" if "nsp_accuracy" in values else "-",
            f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "-",
        )
    console.print(table)
    for name, what in (
        ("data", "token shards, tokenizer, manifest.json"),
        ("phase1", "run folder: metrics.jsonl, checkpoints, log.txt"),
        ("phase2", "run folder of phase 2"),
        ("model", "the Hugging Face folder, for BertForPreTraining.from_pretrained"),
        ("report", "index.html: curves, settings, commands; open it in a browser"),
    ):
        console.print(f"  {work / name!s:<24} {what}", highlight=False)
    console.print("\nWhat the model fills in:")
    for text, answers in fill_masks(work / "model"):
        console.print(f"  {text}\n      {answers}", highlight=False, markup=False)


EXAMPLES = (
    "the capital of the state is the [MASK] of new york .",
    "he was born in the united [MASK] of america .",
    "it is one of the most important works of the 19th [MASK] .",
)


def fill_masks(model: Path) -> list[tuple[str, str]]:
    """Return what the exported model puts in the place of [MASK] in three sentences."""
    import torch
    from transformers import AutoTokenizer, BertForMaskedLM, logging

    from bertds.pretrained.transformers_api import token_texts

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    bert = BertForMaskedLM.from_pretrained(model, trust_remote_code=False).eval()
    answers = []
    for text in EXAMPLES:
        inputs = tokenizer(text.replace("[MASK]", tokenizer.mask_token), return_tensors="pt")
        place = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
        with torch.inference_mode():
            shares = bert(**inputs).logits[0, place].softmax(-1)
        best = shares.topk(5)
        words = token_texts(tokenizer, best.indices.tolist())
        shown = ", ".join(f"{word} {share:.0%}" for word, share in zip(words, best.values.tolist()))
        answers.append((text, shown))
    return answers
