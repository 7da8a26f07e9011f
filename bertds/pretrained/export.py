"""Writes a run as a Hugging Face folder: config, safetensors, tokenizer files, a model card."""

from __future__ import annotations

from pathlib import Path

from bertds import __version__
from bertds.data.tokenizer_folder import tokenizer_files
from bertds.errors import CheckpointError
from bertds.monitor.best_checkpoint import best_checkpoint
from bertds.pretrained.hf_folder import write_model
from bertds.pretrained.load import load_pretrained
from bertds.pretrained.model_card import model_card
from bertds.pretrained.output_folder import check_output, fresh_folder


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
        write_model(
            folder,
            trained.model,
            tokenizer_files(trained.tokenizer_folder),
            pad_token_id=trained.pad_token_id,
            rules=trained.rules,
        )
        card = model_card(trained, known_as or out.as_posix(), license_id)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return out
