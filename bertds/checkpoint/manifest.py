"""Checks a checkpoint's ``manifest.json`` key by key before anything else is read.

The pieces of a tensor must cover it exactly once. A gap would be read as uninitialized memory, and
an overlap would make it ambiguous which value is meant. Model, tokenizer and recipe are checked
too if they are there; an older checkpoint may lack some of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from bertds.checkpoint.train_state import TrainState
from bertds.config.load import load_config
from bertds.config.recipe import ModelConfig
from bertds.data.vocabulary import MAX_VOCABULARY, TokenizerInfo
from bertds.errors import CheckpointError, ConfigError
from bertds.optim.state_kinds import KINDS
from bertds.system.inside import file_inside
from bertds.system.json_fields import MOST, Field, read_fields

FILE = "manifest.json"
FORMAT = "bertds-checkpoint"
VERSION = 1
_FACTS = ("model", "tokenizer", "recipe", "deepspeed", "data", "versions")
_FLOAT_BYTES = 4


class PieceRecord(NamedTuple):
    """The location of one piece: file, key in it, and range of the flattened parameter."""

    file: str
    key: str
    name: str
    kind: str
    start: int
    length: int


def digest(manifest: dict[str, Any]) -> str:
    """Return the checksum that a manifest contains of itself: SHA-256 in hexadecimal."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check ``manifest.json``.

    Raises:
        CheckpointError: it is missing, damaged, of a different format or version, or contains an
            impossible value; the message names the key.
    """
    folder = Path(folder)
    try:
        # A run whose loss is not finite may still save: its window of sums then contains NaN.
        root = read_fields(folder / FILE, CheckpointError, nan=True)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: not a checkpoint (it has no manifest.json)") from None
    manifest = root.mapping()
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{root.file}: not the manifest of a bertds checkpoint")
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"{root.file}: format version {manifest.get('version')}, but this version of bertds "
            f"reads version {VERSION}; use the version that wrote it"
        )
    if manifest.get("sha256") != digest(manifest):
        raise CheckpointError(f"{root.file}: damaged (its checksum does not match)")
    _check_state(root)
    _check_facts(root)
    sizes = _check_files(root, folder)
    _check_pieces(root, _check_shapes(root), sizes)
    return manifest


def _check_state(root: Field) -> None:
    state = TrainState.from_field(root["state"])
    if root["step"].integer() != state.step:
        root["step"].fail(f"{state.step}, as state.step")
    root["optimizer_steps"].integer()
    root["world_size"].integer(1)
    for _, number in root["engine"].items():
        if not isinstance(number.value, bool):
            number.number()


def _check_facts(root: Field) -> None:
    for name in _FACTS:
        if (fact := root.get(name)) is not None:
            fact.mapping()
    recipe = root.get("recipe")
    for _, section in recipe.items() if recipe is not None else ():
        section.mapping()
    seed = recipe and recipe.get("run") and recipe["run"].get("seed")
    if seed:
        seed.integer()
    if root.value.get("tokenizer"):
        tokenizer = TokenizerInfo.from_field(root["tokenizer"])
        if root.value.get("model") and root["model"]["vocab_size"].value != tokenizer.vocab_size:
            root["model"]["vocab_size"].fail(f"{tokenizer.vocab_size}, as tokenizer.vocab_size")
    if root.value.get("model"):
        model_from(root)


def model_from(root: Field) -> tuple[ModelConfig, int]:
    """Return the model that a manifest describes, and the size of its vocabulary.

    Raises:
        CheckpointError: a value has a wrong type, or no such model is possible.
    """
    saved = root["model"]
    vocab_size = saved["vocab_size"].integer(1, MAX_VOCABULARY)
    names = {item.name for item in fields(ModelConfig)}
    model = {key: value for key, value in saved.mapping().items() if key in names}
    # A recipe is checked as a whole, so add data settings that fit every model.
    data = {"pairs": "nsp", "sequence_length": 8, "max_predictions_per_sequence": 1}
    try:
        config = load_config({"model": model, "data": data})
    except ConfigError as error:
        raise CheckpointError(f"{root.file}: {error}") from None
    return config.model, vocab_size


def _check_files(root: Field, folder: Path) -> dict[str, int]:
    """Check the list of files; return the size of each in bytes."""
    sizes: dict[str, int] = {}
    for entry in root["files"].elements():
        entry.only(("file", "bytes", "sha256"))
        name = entry["file"]
        # A name must not point outside the checkpoint folder.
        file_inside(folder, name.value, f"{root.file}: {name.key}", CheckpointError)
        if "/" in name.value or name.value in sizes:
            name.fail("the name of a file in this folder, listed only once")
        sizes[name.value] = entry["bytes"].integer()
        entry["sha256"].sha256()
    return sizes


def _check_shapes(root: Field) -> dict[str, int]:
    """Return the number of elements of each tensor."""
    numels = {}
    for name, shape in root["shapes"].items():
        numels[name] = math.prod(size.integer() for size in shape.elements())
        # A wrong shape must not make a reader allocate any amount of memory.
        if numels[name] > MOST // _FLOAT_BYTES:
            shape.fail("a shape whose tensor fits into a file")
    return numels


def _check_pieces(root: Field, numels: dict[str, int], sizes: dict[str, int]) -> None:
    """Check that the pieces cover each tensor exactly once, each from a file range of its own."""
    held: dict[tuple[str, str], list[tuple[int, int]]] = {}
    seen: set[tuple[str, str]] = set()
    # Bytes that the pieces of each file add up to.
    used = dict.fromkeys(sizes, 0)
    for piece in root["pieces"].elements():
        values = piece.value
        if not (
            isinstance(values, list)
            and [type(value) for value in values] == [str, str, str, str, int, int]
        ):
            piece.fail("[file, key, name, kind, start, length]")
        record = PieceRecord(*values)
        if record.file not in sizes:
            piece.fail("a piece of one of the files in the list of files")
        if record.name not in numels or record.kind not in KINDS:
            piece.fail(f"a piece of a tensor that is listed in shapes, of kind {', '.join(KINDS)}")
        if record.start < 0 or record.length < 0:
            piece.fail("a piece whose start and length are 0 or more")
        if not record.length:
            continue  # the rank owned nothing of the tensor
        if (record.file, record.key) in seen:
            piece.fail("a piece that is not listed yet; this file and key are already in the list")
        seen.add((record.file, record.key))
        used[record.file] += _FLOAT_BYTES * record.length
        held.setdefault((record.name, record.kind), []).append((record.start, record.length))
    # Distinct pieces of a file cannot be larger than the file.
    for file, size in used.items():
        if size > sizes[file]:
            raise CheckpointError(
                f"{root.file}: pieces: {file} has {sizes[file]:,} bytes, but its pieces add up to "
                f"{size:,}"
            )
    # Every tensor needs its weights. Moments are optional, but must be complete.
    for name, numel in numels.items():
        _check_cover(root, name, "weight", numel, held.get((name, "weight"), []))
        for kind in KINDS[1:]:
            if (name, kind) in held:
                _check_cover(root, name, kind, numel, held[name, kind])


def _check_cover(
    root: Field, name: str, kind: str, numel: int, stretches: list[tuple[int, int]]
) -> None:
    # Sorted by start, each piece must begin where the one before it ends.
    end = 0
    for start, length in sorted(stretches):
        if start != end:
            word = "are listed twice" if start < end else "are missing"
            first, last = sorted((start, end))
            raise CheckpointError(
                f"{root.file}: pieces: elements {first:,} to {last - 1:,} of {kind} {name} {word}"
            )
        end += length
    if end != numel:
        raise CheckpointError(
            f"{root.file}: pieces: {end:,} elements of {kind} {name}, but its shape has {numel:,}"
        )
