"""Reads state dicts from safetensors and PyTorch files, whole or in shards."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertds.errors import CheckpointError
from bertds.model.build import PreTrainingModel
from bertds.pretrained.hf_weights import (
    LoadReport,
    check_tensors,
    load_transformers_state_dict,
)
from bertds.system.json_fields import parse_json


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a Hugging Face folder, or of one .safetensors, .bin or .pt file.

    A DLE checkpoint's ``model`` entry is taken on its own.

    Raises:
        CheckpointError: nothing readable there; names the file.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_file(path)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return _read_file(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            tensors: dict[str, Tensor] = {}
            for shard in _shards_of(index):
                tensors |= _read_file(path / shard)
            return tensors
    raise CheckpointError(f"{path}: found neither model.safetensors nor pytorch_model.bin")


def load_folder(model: PreTrainingModel, folder: Path | str) -> LoadReport:
    """Copy the weights of a Hugging Face folder into our model.

    Raises:
        CheckpointError: they cannot be read, or do not fit the model; names the folder.
    """
    tensors = read_state_dict(folder)
    try:
        return load_transformers_state_dict(model, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def _shards_of(index: Path) -> list[str]:
    try:
        names = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not a list of weight files ({error})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: {name!r} is not the name of a file in the same folder")
    return sorted(names)


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
    except Exception as error:  # whatever a damaged file makes the library raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as weights ({reason})") from error
    content = load_pickle(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{path}: contains no state dict of tensors")
    check_tensors(path, content)
    return dict(content)


def _check_zip(path: Path) -> None:
    """Refuse a file of torch.save that unpacks to far more than it holds: torch packs nothing.

    Raises:
        CheckpointError: names both sizes.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        size = path.stat().st_size
        if unpacked > (64 << 20) + 2 * size:
            raise CheckpointError(
                f"{path}: has {size:,} bytes, but unpacks to {unpacked:,}; such a file is not read"
            )


def load_pickle(path: Path) -> object:
    """Read a pickle's tensors and plain values on the CPU; none of its code is run.

    In addition to torch's own list only two kinds of plain values are let in, which Megatron's
    files hold: an ``argparse.Namespace`` and numpy arrays (its settings and random state).

    Raises:
        CheckpointError: it is damaged, or needs other classes; names the class.
    """
    rebuild = np.zeros(1).__reduce__()[0]  # its module's name differs between versions of numpy
    plain: list[Any] = [
        argparse.Namespace,
        np.ndarray,
        np.dtype,
        np.dtypes.UInt32DType,
        (rebuild, "numpy.core.multiarray._reconstruct"),
        (rebuild, "numpy._core.multiarray._reconstruct"),
    ]
    try:
        _check_zip(path)
        with torch.serialization.safe_globals(plain):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged or hostile pickle makes torch raise
        found = re.search(r"(?i)unsupported (?:global:? |class )+([\w.]+)", str(error))
        first = str(error).strip().split("\n")[0][:200]
        reason = (
            f"it needs {found[1]}, and code in a checkpoint is never run"
            if found
            else first
            if re.search("[a-z]", first) and "weights_only" not in first
            else "not a file written by torch.save, or damaged"
        )
        raise CheckpointError(f"{path}: cannot be read as weights ({reason})") from error
