"""Write a run as a Hugging Face folder: config, safetensors, tokenizer files, a model card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors.torch import save_file

from bertds import __version__
from bertds.errors import CheckpointError, ConfigError
from bertds.pretrained import hf_config, hf_weights
from bertds.pretrained.load import Trained, open_trained
from bertds.pretrained.model_card import model_card
from bertds.system.atomic_files import explain_os_error, write_json

MARK = "bertds_export.json"


def export(run: Path | str, out: Path | str, *, average: bool = True) -> Path:
    """Write the Hugging Face folder. It appears whole or not at all.

    Args:
        run: a run folder (its newest good checkpoint is taken) or one checkpoint.
        out: the folder; must be absent, empty, or an earlier export.
        average: the moving average of the weights, where the run has kept one.

    Raises:
        ConfigError: ``out`` holds something else.
        CheckpointError: there is no intact checkpoint, or no tokenizer beside it.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise ConfigError(
            f"--out {out}: exists and is not an earlier export; choose another folder"
        )
    trained = open_trained(run, average=average)
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
        hf_config.config_to_transformers(trained.config, trained.vocab_size, pad_token_id=pad),
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
