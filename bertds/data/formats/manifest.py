"""The manifest of a prepared folder: counts, checksums, tokenizer, settings, sources, splits.

It is written last, so that a folder with a manifest is a complete one, and holds no time and no
machine, so that the same inputs and settings give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bertds.data.vocabulary import TokenizerInfo
from bertds.errors import DataError
from bertds.system.atomic_files import write_json

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "bertds-token-shards"
MANIFEST_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """What the manifest knows of one token shard."""

    file: str
    """Path below the prepared folder, for example ``train/shard_00000.h5``."""
    bytes: int
    sha256: str
    documents: int
    sentences: int
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitInfo:
    """One split (``train``, ``validation``): its shards; the totals follow from them."""

    shards: tuple[ShardInfo, ...] = ()

    @property
    def documents(self) -> int:
        """How many documents."""
        return sum(shard.documents for shard in self.shards)

    @property
    def sentences(self) -> int:
        """How many sentences."""
        return sum(shard.sentences for shard in self.shards)

    @property
    def tokens(self) -> int:
        """How many tokens."""
        return sum(shard.tokens for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's object for this split."""
        totals = {"documents": self.documents, "sentences": self.sentences, "tokens": self.tokens}
        return {**totals, "shards": [asdict(shard) for shard in self.shards]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The contents of ``manifest.json``."""

    tokenizer: TokenizerInfo
    splits: dict[str, SplitInfo]
    documents: dict[str, Any]
    """``{"read": N, "written": M, "dropped": {reason: n}}``; read = written + all dropped."""
    settings: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    instances: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the whole manifest as JSON values, keys in a fixed order."""
        return {
            "format": MANIFEST_FORMAT,
            "version": MANIFEST_VERSION,
            "tokenizer": self.tokenizer.to_json(),
            "settings": self.settings,
            "sources": self.sources,
            "documents": self.documents,
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "instances": self.instances,
        }

    def save(self, folder: Path | str) -> None:
        """Check the counts and write ``folder/manifest.json`` atomically."""
        path = Path(folder) / MANIFEST_NAME
        _check_counts(path, self.documents)
        write_json(path, self.to_json())

    @staticmethod
    def load(folder: Path | str) -> Manifest:
        """Read and validate ``folder/manifest.json``.

        Raises:
            DataError: it is missing, damaged, of another format or version, or does not add up.
        """
        path = Path(folder) / MANIFEST_NAME
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: missing; preparation writes it last, so this folder is not complete"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as JSON ({error})") from error
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        if found != MANIFEST_FORMAT:
            raise DataError(f"{path}: format is {found!r}, expected {MANIFEST_FORMAT!r}")
        if value.get("version") != MANIFEST_VERSION:
            raise DataError(
                f"{path}: version is {value.get('version')!r}, this bertds reads version "
                f"{MANIFEST_VERSION}; prepare the data again"
            )
        manifest: Manifest = _parse(path, lambda: _from_json(value, Path(folder)))
        _parse(path, lambda: _check_counts(path, manifest.documents))
        return manifest

    def split(self, folder: Path | str, name: str) -> SplitInfo:
        """Return one split that has documents, or raise DataError that names those there are."""
        split = self.splits.get(name)
        if split is None or not split.documents:
            there = ", ".join(n for n, s in self.splits.items() if s.documents) or "none"
            raise DataError(f"{Path(folder) / MANIFEST_NAME}: no {name!r} split (there: {there})")
        return split


def _from_json(value: dict[str, Any], folder: Path) -> Manifest:
    tokenizer = value["tokenizer"]
    tokenizer_folder = folder / "tokenizer"
    files = (
        {p.name: p for p in sorted(tokenizer_folder.iterdir())}
        if (tokenizer_folder.is_dir())
        else {}
    )
    splits = {}
    for name, split in value["splits"].items():
        shards = tuple(ShardInfo(**shard) for shard in split["shards"])
        splits[name] = SplitInfo(shards=shards)
        for key in ("documents", "sentences", "tokens"):
            if split[key] != getattr(splits[name], key):
                raise ValueError(f"splits.{name}.{key} is not the sum over its shards")
    return Manifest(
        tokenizer=TokenizerInfo.from_json(tokenizer, files),
        splits=splits,
        documents=value["documents"],
        settings=value["settings"],
        sources=value["sources"],
        instances=value["instances"],
    )


def _parse(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except KeyError as error:
        raise DataError(f"{path}: the key {error} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a valid manifest ({error})") from error


def _check_counts(path: Path, documents: dict[str, Any]) -> None:
    read, written = documents["read"], documents["written"]
    dropped = sum(documents["dropped"].values())
    if read != written + dropped:
        raise DataError(
            f"{path}: documents do not add up: read {read}, written {written}, dropped {dropped}"
        )
