"""Writes a run as a Hugging Face folder: config, safetensors, tokenizer files, a model card."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from bertds import __version__
from bertds.errors import CheckpointError
from bertds.monitor.best_checkpoint import best_checkpoint
from bertds.pretrained import hf_config, hf_weights
from bertds.pretrained.load import PretrainedModel, load_pretrained
from bertds.pretrained.model_card import model_card
from bertds.pretrained.output_folder import check_output, fresh_folder
from bertds.system.atomic_files import write_json


def export(
    run: Path | str,
    out: Path | str,
    *,
    average: bool = True,
    best: bool = False,
    overwrite: bool = False,
    known_as: str = "",
    license_id: str = "",
) -> Path:
    """Write the Hugging Face folder. It becomes visible only when it is complete.

    Args:
        run: a run folder (its newest good checkpoint is used) or one checkpoint.
        out: the folder; must be absent or empty, or with ``overwrite`` an earlier export.
        average: export the moving average of the weights, if the run has one.
        best: export the checkpoint with the lowest held-out loss instead of the newest.
        overwrite: replace an earlier export.
        known_as: the Hub id that the example on the model card loads; empty = the folder.
        license_id: the Hub's identifier of the model's licence, for the card.

    Raises:
        ConfigError: ``out`` is not empty.
        CheckpointError: there is no intact checkpoint or no tokenizer next to it, or, with
            ``best``, no checkpoint has a held-out loss.
    """
    out = Path(out)
    check_output(out, overwrite=overwrite)
    trained = load_pretrained(best_checkpoint(Path(run)) if best else run, average=average)
    if trained.tokenizer_folder is None:
        raise CheckpointError(f"{run}: tokenizer/vocab.txt is missing, which an export requires")
    origin, step = trained.origin.name, trained.manifest.get("step")
    mark = {"bertds": __version__, "origin": origin, "step": step}
    with fresh_folder(out, overwrite=overwrite, mark=mark) as folder:
        _write(trained, folder)
        card = model_card(trained, known_as or out.as_posix(), license_id)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return out


def _write(trained: PretrainedModel, folder: Path) -> None:
    manifest = trained.manifest
    tokenizer = manifest.get("tokenizer", {})
    pad = tokenizer.get("special_ids", {}).get("pad", 0)
    write_json(
        folder / "config.json",
        hf_config.config_to_transformers(trained.config, trained.vocab_size, pad_token_id=pad),
    )
    weights = hf_weights.to_transformers_state_dict(trained.model)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert trained.tokenizer_folder is not None
    for source in sorted(trained.tokenizer_folder.iterdir()):
        if source.is_file() and not source.name.startswith("."):
            shutil.copyfile(source, folder / source.name)
    # Without this file transformers would guess the casing.
    if not (folder / "tokenizer_config.json").is_file():
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": bool(tokenizer.get("lower_case", True)),
                "model_max_length": trained.config.max_position_embeddings,
            },
        )
