"""The model card: what a model was trained on, and how."""

from __future__ import annotations

import json
from typing import Any

from bertds import __version__
from bertds.monitor.metrics_file import FILE as METRICS_FILE
from bertds.monitor.run_files import read_metrics
from bertds.monitor.setting_lines import read_changes
from bertds.pretrained import hf_config, hf_weights
from bertds.pretrained.load import Trained


def model_card(trained: Trained) -> str:
    """Return the model card: what the model is, what it saw, how it was trained, its scores."""
    manifest, config = trained.manifest, trained.config
    parameters = sum(
        tensor.numel() for tensor in hf_weights.to_transformers_state_dict(trained.model).values()
    )
    run_dir = trained.origin.resolve().parent.parent
    scores = [
        line
        for line in read_metrics(run_dir / METRICS_FILE).lines
        if line.get("split") == "validation" and line["step"] <= manifest.get("step", 0)
    ]
    recipe, deepspeed = manifest.get("recipe", {}), manifest.get("deepspeed", {})
    state, data = manifest.get("state", {}), manifest.get("data", {})
    optimizer = deepspeed.get("optimizer", {})
    heads = "masked LM and next sentence" if config.next_sentence else "masked LM"
    kind = "ModernBERT" if config.style == "modern" else "BERT"
    architecture = hf_config.config_to_transformers(config, trained.vocab_size)["architectures"][0]
    lines = [
        "---",
        "library_name: transformers",
        f"tags: [{kind.lower()}, fill-mask, pretraining]",
        "pipeline_tag: fill-mask",
        "---",
        "",
        f"# {recipe.get('run', {}).get('name') or run_dir.name}",
        "",
        f"A {kind} of {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {parameters:,} parameters, vocabulary "
        f"{trained.vocab_size:,}, pre-trained with {heads} by bertds {__version__}.",
        "",
        "```python",
        f"from transformers import AutoTokenizer, {architecture}",
        f'model = {architecture}.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        "```",
        "",
        "## Data",
        "",
        *_table(data),
        "",
        "## Training",
        "",
        *_table(
            {
                "steps": manifest.get("step"),
                "samples": state.get("samples"),
                "real tokens": state.get("tokens"),
                "hours": round(state.get("hours", 0.0), 3),
                "sequence length": recipe.get("data", {}).get("sequence_length"),
                "optimizer": f"{optimizer.get('type')} {json.dumps(optimizer.get('params', {}))}",
                "global batch": deepspeed.get("train_batch_size"),
                "schedule": json.dumps(
                    {k: v for k, v in recipe.get("schedule", {}).items() if v is not None}
                ),
                "started from": recipe.get("init", {}).get("from") or "random weights",
                "seed": recipe.get("run", {}).get("seed"),
                "processes": manifest.get("world_size"),
                "versions": json.dumps(manifest.get("versions", {}).get("packages", {})),
            }
        ),
        "",
    ]
    changed = [
        f"| {change.name} | {change.before} | {change.now} | {step:,} |"
        for step, change in read_changes(run_dir)
        if step < manifest.get("step", 0)
    ]
    if changed:
        head = ["| setting | before | after | from step |", "|---|---|---|---|"]
        lines += ["## Settings changed during training", "", *head, *changed, ""]
    if scores:
        lines += ["## Held-out scores", "", *_table(scores[-1]), ""]
    return "\n".join(lines)


def _table(values: dict[str, Any]) -> list[str]:
    rows = []
    for key, value in values.items():
        if value is not None and not isinstance(value, (list, dict)):
            text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
            rows.append(f"| {key} | {str(text).replace('|', '/')} |")
    return ["| | |", "|---|---|", *rows] if rows else ["Not recorded."]
