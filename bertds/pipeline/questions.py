"""Collects the answers of a model before and after training, and the most frequent token."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch

from bertds.config.load import load_config
from bertds.config.recipe import Config, DataConfig
from bertds.data.loader import open_source
from bertds.data.vocabulary import load_tokenizer_info
from bertds.monitor.metrics_file import FILE
from bertds.monitor.run_files import read_metrics
from bertds.pipeline import facts
from bertds.pretrained.load import PretrainedModel, load_pretrained
from bertds.training.build import open_held_out
from bertds.training.prompts import Prompts, as_text


def held_out_data(config: Config) -> DataConfig:
    """Return the data settings that open a run's held-out rows."""
    path = config.validation.path or config.data.path
    return dataclasses.replace(config.data, path=path)


def has_held_out(config: Config) -> bool:
    """Return whether a run has held-out text."""
    source = open_source(config.data, config.run.seed, split="train")
    return open_held_out(config, source) is not None


def ask_prompts(run: Path, trained: PretrainedModel) -> list[dict[str, str]]:
    """Ask the final model the fixed prompts of a run's validations.

    Args:
        run: the run whose recipe has the prompts.
        trained: the final model, of this run or of one that started from it.

    Returns:
        For each prompt ``text``, ``answer``, ``before`` training (empty if it was not asked then),
        ``after``, and ``frequent``, the most frequent token of the training text.
    """
    config = load_config(load_pretrained(run).manifest["recipe"])
    source = open_source(config.data, config.run.seed, split="train")
    held_out = open_held_out(config, source)
    prompts = None if held_out is None else Prompts.of(held_out, config)
    if prompts is None:
        return []
    # The answers before training are in the metric line of the validation at step 0.
    before = [""] * len(prompts.texts)
    for line in read_metrics(run / FILE).validation:
        if line["step"] == 0 and len(line.get("prompts", [])) == len(before):
            before = [prompt["predicted"] for prompt in line["prompts"]]
    counts, tokenizer = source.token_counts(), source.tokenizer
    frequent = "" if counts is None else tokenizer.vocabulary()[int(counts.argmax())]
    answered = zip(prompts.lines(_predict(trained, prompts)), before, strict=True)
    return [
        {
            "text": line["text"],
            "answer": line["answer"],
            "before": first,
            "after": line["predicted"],
            "frequent": as_text([frequent], tokenizer),
        }
        for line, first in answered
    ]


def ask_facts(trained: PretrainedModel, told: facts.Facts) -> dict[str, dict[str, int]]:
    """Ask every held-out sentence about its fact.

    Returns:
        Kind of fact -> ``asked``, the number of questions; ``right``, the number of answers that
        are right at rank one; ``answers``, the number of different answers to choose from.
    """
    assert trained.tokenizer_folder is not None
    tokenizer = load_tokenizer_info(trained.tokenizer_folder, *(trained.rules or ()))
    with tempfile.TemporaryDirectory() as folder:
        facts.write(told, Path(folder))
        asked = Path(folder) / "questions.tsv"
        prompts = Prompts.from_file(asked, tokenizer, trained.config.max_position_embeddings)
    result: dict[str, dict[str, int]] = {}
    lines = prompts.lines(_predict(trained, prompts))
    for question, line in zip(told.questions, lines, strict=True):
        counts = result.setdefault(question.kind, {"asked": 0, "right": 0})
        counts["asked"] += 1
        counts["right"] += line["predicted"] == line["answer"]
    for kind, counts in result.items():
        counts["answers"] = len({q.answer for q in told.questions if q.kind == kind})
    return result


def _predict(trained: PretrainedModel, prompts: Prompts) -> torch.Tensor:
    with torch.inference_mode():
        output = trained.model.to("cpu").eval()(**prompts.batch.model_inputs(), predict=True)
    assert output.predictions is not None
    return output.predictions
