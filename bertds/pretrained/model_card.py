"""The model card: what a model is, its training and data, its intended use and its scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bertds import __version__
from bertds.data.formats.manifest import MANIFEST_NAME
from bertds.monitor.metrics_file import FILE as METRICS_FILE
from bertds.monitor.run_files import at, read_metrics, read_object
from bertds.monitor.setting_lines import read_changes
from bertds.pretrained import hf_config, hf_weights
from bertds.pretrained.load import PretrainedModel

EXAMPLE = "The capital of France is {mask}."


def model_card(trained: PretrainedModel, where: str, license_id: str = "") -> str:
    """Return the model card, as written by huggingface_hub's ``ModelCard``.

    Args:
        trained: the model.
        where: the argument of ``from_pretrained``: a hub id, or the folder.
        license_id: the hub's name of the model's licence; "" = the card does not state one.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    run_dir = trained.origin.resolve().parent.parent
    name = at(trained.manifest, "recipe.run.name", str, "") or run_dir.name
    # The metadata at the top is read by the Hub; the sections below are for people.
    score = _last_score(trained, run_dir)
    kind = "modernbert" if trained.config.style == "modern" else "bert"
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=[kind, "fill-mask", "pretraining", "bertds"],
        license=license_id or None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="fill-mask",
                task_name="Masked language modelling",
                dataset_type="held-out",
                dataset_name="held-out documents",
                metric_type=metric,
                metric_value=round(value, 4),
            )
            for metric, value in (
                ("perplexity", math.exp(min(score["mlm_loss"], 50.0))),
                ("accuracy", score["mlm_accuracy"]),
            )
        ]
        if score
        else None,
    )
    sections = [
        f"# {name}",
        _summary(trained),
        _example(trained, where),
        "## Intended use",
        _use(trained),
        "## Limitations",
        _limits(trained),
        "## Data",
        _data(trained),
        "## Training",
        *_training(trained, run_dir),
        "## Held-out scores",
        _score_words(score),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


def _summary(trained: PretrainedModel) -> str:
    config = trained.config
    kind = "ModernBERT" if config.style == "modern" else "BERT"
    heads = "masked LM and next sentence" if config.next_sentence else "masked LM"
    tensors = hf_weights.to_transformers_state_dict(trained.model).values()
    return (
        f"A {kind} of {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {sum(t.numel() for t in tensors):,} parameters, "
        f"vocabulary {trained.vocab_size:,}, pre-trained with {heads} by bertds {__version__}."
    )


def _example(trained: PretrainedModel, where: str) -> str:
    mask = at(trained.manifest, "tokenizer.special_tokens.mask", str, "[MASK]")
    return (
        "```python\nfrom transformers import pipeline\n\n"
        f'fill_mask = pipeline("fill-mask", model="{where}")\n'
        f'print(fill_mask("{EXAMPLE.format(mask=mask)}"))\n```'
    )


def _use(trained: PretrainedModel) -> str:
    architecture = hf_config.config_to_transformers(trained.config, trained.vocab_size)
    return (
        "The model fills in masked words. It is mainly intended for fine-tuning: text and "
        "text-pair classification, named-entity recognition, extractive question answering, "
        "embeddings. transformers loads it as "
        f"`{architecture['architectures'][0]}` or as any Auto class for these tasks; use `bertds "
        "finetune` to fine-tune it."
    )


def _limits(trained: PretrainedModel) -> str:
    length = at(trained.manifest, "recipe.data.sequence_length", int, 0)
    seen = f" It was trained on rows of at most {length} tokens." if length else ""
    return (
        "The model does not generate text. The words that it fills in are probable, not "
        "necessarily true. It reflects the views and biases of its training text, and is limited "
        "to the language and period of that text. It reads at most "
        f"{trained.config.max_position_embeddings} tokens.{seen} The scores below are for "
        "held-out documents of the same sources; on other text the model may perform worse."
    )


def _data(trained: PretrainedModel) -> str:
    """Return the sources with their licences, if the prepared folder still exists."""
    facts = trained.manifest.get("data", {})
    path = at(trained.manifest, "recipe.data.path", str, "") or at(facts, "path", str, "")
    prepared = read_object(Path(path) / MANIFEST_NAME, []) if path else {}
    rows = [
        f"| {_cell(s.get('name', ''))} | {_cell(s.get('licence') or 'not stated')} | "
        f"{_cell(s.get('documents_written', ''))} |"
        for s in prepared.get("sources", [])
        if isinstance(s, dict)
    ]
    lines = [_table(facts, leave_out=("path", "tokenizer_fingerprint"))]
    if rows:
        head = ["| source | licence of the text | documents |", "|---|---|---|"]
        lines.insert(0, "\n".join([*head, *rows]))
    return "\n\n".join(lines)


def _training(trained: PretrainedModel, run_dir: Path) -> list[str]:
    manifest = trained.manifest
    recipe, state = manifest.get("recipe", {}), manifest.get("state", {})
    packages = at(manifest, "versions.packages", dict, {})
    values = {
        "steps": manifest.get("step"),
        "samples": state.get("samples"),
        "real tokens": state.get("tokens"),
        "hours": round(state.get("hours", 0.0), 3),
        "sequence length": at(recipe, "data.sequence_length", int, 0) or None,
        "optimizer": _optimizer(manifest.get("deepspeed", {})),
        "global batch": at(manifest, "deepspeed.train_batch_size", int, 0) or None,
        "schedule": _words(recipe.get("schedule", {})),
        "started from": _origin(recipe),
        "seed": at(recipe, "run.seed", int, 0),
        "processes": manifest.get("world_size"),
        "versions": _words(packages),
    }
    # Only changes before the exported checkpoint affect its weights.
    changed = [
        f"| {change.name} | {change.before} | {change.now} | {step:,} |"
        for step, change in read_changes(run_dir)
        if step < manifest.get("step", 0)
    ]
    if not changed:
        return [_table(values)]
    head = ["| setting | before | after | from step |", "|---|---|---|---|"]
    return [
        _table(values),
        "### Settings changed during training",
        "\n".join([*head, *changed]),
    ]


def _optimizer(deepspeed: dict[str, Any]) -> str:
    optimizer = deepspeed.get("optimizer", {})
    return f"{optimizer.get('type')}: {_words(optimizer.get('params', {}))}"


def _origin(recipe: dict[str, Any]) -> str:
    """Return the last part of a path only, because folders of this machine are private."""
    origin = at(recipe, "init.from", str, "")
    return Path(origin).name if origin else "random weights"


def _words(values: dict[str, Any]) -> str:
    """Return settings as text: ``lr 0.001, betas 0.9 and 0.999``."""
    return ", ".join(
        f"{key.replace('_', ' ')} "
        + (" and ".join(map(str, value)) if isinstance(value, list) else str(value))
        for key, value in values.items()
        if value is not None and not isinstance(value, dict)
    )


def _last_score(trained: PretrainedModel, run_dir: Path) -> dict[str, Any]:
    step = trained.manifest.get("step", 0)
    lines = read_metrics(run_dir / METRICS_FILE).validation
    return next((line for line in reversed(lines) if line["step"] <= step), {})


def _score_words(score: dict[str, Any]) -> str:
    if not score:
        return "No scores were measured during training; use `bertds evaluate` to measure them."
    loss = score["mlm_loss"]
    words = [
        f"On held-out documents, at step {score['step']:,}: {score['mlm_accuracy']:.1%} of the "
        f"masked tokens are predicted correctly. The loss is {loss:.3f} nats, a perplexity of "
        f"{math.exp(min(loss, 50.0)):,.1f}: the model is as uncertain as if it chose at random "
        "among that number of words."
    ]
    if score.get("unigram_entropy") is not None:
        words.append(
            f"A model that knows only word frequencies reaches {score['unigram_entropy']:.3f} "
            "nats at best."
        )
    if score.get("nsp_accuracy") is not None:
        words.append(
            "The model predicts correctly whether two segments follow each other in "
            f"{score['nsp_accuracy']:.1%} of the rows."
        )
    return " ".join(words)


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return " ".join(text.replace("|", "/").split())


def _table(values: dict[str, Any], leave_out: tuple[str, ...] = ()) -> str:
    rows = [
        f"| {key.replace('_', ' ')} | {_cell(value)} |"
        for key, value in values.items()
        if value is not None and not isinstance(value, (list, dict)) and key not in leave_out
    ]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else "Not recorded."
