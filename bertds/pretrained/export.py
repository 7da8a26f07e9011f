"""Write a run as a Hugging Face folder: config, safetensors, tokenizer files, a model card."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from bertds import __version__
from bertds.errors import EXIT_OK, CheckpointError, ConfigError
from bertds.monitor.metrics import FILE as METRICS_FILE
from bertds.monitor.run_files import read_metrics
from bertds.pretrained import hf_weights
from bertds.pretrained.load import Trained, open_trained
from bertds.system.atomic_files import explain_os_error, write_json

MARK = "bertds_export.json"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bertds export",
        description="Write a run as a Hugging Face folder that transformers loads.",
    )
    parser.add_argument("run", help="a run folder or one checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Export one run."""
    args = parse_args(argv)
    folder = export(args.run, args.out)
    (architecture,) = hf_weights.read_config(folder)["architectures"]
    print(f"wrote {folder}: load it with {architecture}.from_pretrained({str(folder)!r})")
    return EXIT_OK


def export(run: Path | str, out: Path | str) -> Path:
    """Write the Hugging Face folder. It appears whole or not at all.

    Args:
        run: a run folder (its newest good checkpoint is taken) or one checkpoint.
        out: the folder; must be absent, empty, or an earlier export.

    Raises:
        ConfigError: ``out`` holds something else.
        CheckpointError: there is no intact checkpoint, or no tokenizer beside it.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise ConfigError(
            f"--out {out}: exists and is not an earlier export; choose another folder"
        )
    trained = open_trained(run)
    if trained.tokenizer_folder is None:
        raise CheckpointError(f"{run}: no tokenizer/vocab.txt beside it, which an export needs")
    temporary = out.with_name(f".tmp-{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write(trained, temporary)
        if out.exists():
            grave = out.with_name(f".tmp-old-{out.name}.{os.getpid()}")
            out.rename(grave)
            temporary.rename(out)
            shutil.rmtree(grave, ignore_errors=True)
        else:
            temporary.rename(out)
    except OSError as error:
        raise explain_os_error(error, out) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _write(trained: Trained, folder: Path) -> None:
    manifest = trained.manifest
    tokenizer = manifest.get("tokenizer", {})
    pad = tokenizer.get("special_ids", {}).get("pad", 0)
    write_json(
        folder / "config.json",
        hf_weights.config_to_transformers(trained.config, trained.vocab_size, pad_token_id=pad),
    )
    weights = hf_weights.to_transformers_state_dict(trained.model)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert trained.tokenizer_folder is not None
    for source in sorted(trained.tokenizer_folder.iterdir()):
        if source.is_file() and not source.name.startswith("."):
            shutil.copyfile(source, folder / source.name)
    if not (folder / "tokenizer_config.json").is_file():
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": bool(tokenizer.get("lower_case", True)),
                "model_max_length": trained.config.max_position_embeddings,
            },
        )
    write_json(
        folder / MARK,
        {"bertds": __version__, "origin": trained.origin.name, "step": manifest.get("step")},
    )
    (folder / "README.md").write_text(model_card(trained), encoding="utf-8")


def model_card(trained: Trained) -> str:
    """Return the model card: what the model is, what it saw, how it was trained, its scores."""
    manifest, config = trained.manifest, trained.config
    parameters = sum(
        tensor.numel() for tensor in hf_weights.to_transformers_state_dict(trained.model).values()
    )
    run_dir = trained.origin.resolve().parent.parent
    scores = [
        line for line in read_metrics(run_dir / METRICS_FILE).lines
        if line.get("split") == "validation" and line["step"] <= manifest.get("step", 0)
    ]  # fmt: skip
    recipe, deepspeed = manifest.get("recipe", {}), manifest.get("deepspeed", {})
    state, data = manifest.get("state", {}), manifest.get("data", {})
    optimizer = deepspeed.get("optimizer", {})
    heads = "masked LM and next sentence" if config.next_sentence else "masked LM"
    kind = "ModernBERT" if config.style == "modern" else "BERT"
    architecture = hf_weights.config_to_transformers(config, trained.vocab_size)["architectures"][0]
    lines = [
        "---", "library_name: transformers", f"tags: [{kind.lower()}, fill-mask, pretraining]",
        "pipeline_tag: fill-mask", "---", "",
        f"# {recipe.get('run', {}).get('name') or run_dir.name}", "",
        f"A {kind} of {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {parameters:,} parameters, vocabulary "
        f"{trained.vocab_size:,}, pre-trained with {heads} by bertds {__version__}.", "",
        "```python", f"from transformers import AutoTokenizer, {architecture}",
        f'model = {architecture}.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")', "```", "",
        "## Data", "", *_table(data), "",
        "## Training", "",
        *_table({
            "steps": manifest.get("step"), "samples": state.get("samples"),
            "real tokens": state.get("tokens"), "hours": round(state.get("hours", 0.0), 3),
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
        }), "",
    ]  # fmt: skip
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
