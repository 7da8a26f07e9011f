"""The manifest of a prepared folder: counts, checksums, tokenizer, settings, sources, splits.

It is written last, so a folder with a manifest is complete. It contains no time and no machine
name, so the same inputs and settings give the same bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bertds.data.tokenizer_folder import tokenizer_files
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info
from bertds.errors import DataError
from bertds.system.atomic_files import write_json
from bertds.system.inside import file_inside
from bertds.system.json_fields import Field, read_fields

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "bertds-token-shards"
MANIFEST_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """The manifest's entry for one token shard."""

    file: str
    """Path below the prepared folder, for example ``train/shard_00000.h5``."""
    bytes: int
    sha256: str
    documents: int
    sentences: int
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitInfo:
    """One split (``train``, ``validation``): its shards, from which the totals are computed."""

    shards: tuple[ShardInfo, ...] = ()

    @property
    def documents(self) -> int:
        """The number of documents."""
        return sum(shard.documents for shard in self.shards)

    @property
    def sentences(self) -> int:
        """The number of sentences."""
        return sum(shard.sentences for shard in self.shards)

    @property
    def tokens(self) -> int:
        """The number of tokens."""
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
        """Return the whole manifest as JSON values, with keys in a fixed order."""
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

    def shards(self) -> list[ShardInfo]:
        """Return the shards of all splits."""
        return [shard for split in self.splits.values() for shard in split.shards]

    def save(self, folder: Path | str) -> None:
        """Check the counts and write ``folder/manifest.json`` atomically."""
        path = Path(folder) / MANIFEST_NAME
        _check_counts(path, self.documents)
        write_json(path, self.to_json())

    @staticmethod
    def load(folder: Path | str) -> Manifest:
        """Read and validate ``folder/manifest.json``.

        Raises:
            DataError: it is missing, damaged, of a different format or version, or does not add up.
        """
        try:
            root = read_fields(Path(folder) / MANIFEST_NAME, DataError)
        except FileNotFoundError as error:
            raise DataError(
                f"{Path(folder) / MANIFEST_NAME}: missing; preparation writes it last, so the "
                "folder is incomplete"
            ) from error
        return manifest_from(root, Path(folder))

    def split(self, folder: Path | str, name: str) -> SplitInfo:
        """Return a split that has documents.

        Raises:
            DataError: it has none; the message names the splits that do.
        """
        split = self.splits.get(name)
        if split is None or not split.documents:
            there = ", ".join(n for n, s in self.splits.items() if s.documents) or "none"
            raise DataError(
                f"{Path(folder) / MANIFEST_NAME}: no {name!r} split (available: {there})"
            )
        return split


FREE_TOKENS, MAX_TOKENS_PER_BYTE = 1 << 25, 200
"""The maximum number of tokens in a shard: readers refuse files that unpack to 400 times their
size, and a token has 2 bytes or more."""
_SHARD = ("file", "bytes", "sha256", "documents", "sentences", "tokens")
_TOTALS = ("documents", "sentences", "tokens")
_INSTANCE_FILE = ("file", "bytes", "sha256", "rows")
_SOURCE_COUNTS = ("documents_read", "documents_written", "documents_repeated")


def manifest_from(root: Field, folder: Path) -> Manifest:
    """Check a manifest against the format, key by key, and return its contents.

    Args:
        root: the whole of ``manifest.json``.
        folder: the prepared folder; every file that the manifest names must be inside it.

    Raises:
        DataError: the first value that is wrong, with its key.
    """
    found = root.value.get("format")
    if found != MANIFEST_FORMAT:
        raise DataError(f"{root.file}: format is {found!r}, expected {MANIFEST_FORMAT!r}")
    if root.value.get("version") != MANIFEST_VERSION:
        raise DataError(
            f"{root.file}: version is {root.value.get('version')!r}, but this version of bertds "
            f"reads version {MANIFEST_VERSION}; prepare the data again"
        )
    root.only(("format", "version", *(item.name for item in fields(Manifest))))
    splits = {name: _split_from(split, folder) for name, split in root["splits"].items()}
    manifest = Manifest(
        tokenizer=_tokenizer_from(root["tokenizer"], folder),
        splits=splits,
        documents=_documents_from(root["documents"]),
        settings=root["settings"].mapping(),
        sources=[_source_from(source) for source in root["sources"].elements()],
        instances=[_instance_from(one, folder) for one in root["instances"].elements()],
    )
    _check_counts(root.file, manifest.documents)
    return manifest


def _split_from(split: Field, folder: Path) -> SplitInfo:
    split.only((*_TOTALS, "shards"))
    shards = []
    for shard in split["shards"].elements():
        shard.only(_SHARD)
        _file_from(shard, folder)
        documents, sentences, tokens = (shard[name].integer(1) for name in _TOTALS)
        if not documents <= sentences <= tokens:
            shard.fail("a shard with at least one sentence per document and one token per sentence")
        # Memory is allocated for them before a shard of a store has been seen.
        if tokens > (most := FREE_TOKENS + MAX_TOKENS_PER_BYTE * shard["bytes"].integer()):
            shard["tokens"].fail(f"at most {most:,} in a file of this size")
        shards.append(ShardInfo(**shard.mapping()))
    files = [shard.file for shard in shards]
    if len(set(files)) < len(files):
        split["shards"].fail("a list that names each file once")
    info = SplitInfo(shards=tuple(shards))
    # The totals are redundant, so a difference means that the manifest was edited or damaged.
    for key in _TOTALS:
        if split[key].integer() != getattr(info, key):
            raise DataError(f"{split.file}: {split.key}.{key} is not the sum over the shards")
    return info


def _file_from(entry: Field, folder: Path) -> None:
    name = entry["file"]
    file_inside(folder, name.value, f"{name.file}: {name.key}", DataError)
    entry["bytes"].integer()
    entry["sha256"].sha256()


def _tokenizer_from(given: Field, folder: Path) -> TokenizerInfo:
    info = TokenizerInfo.from_field(given, tokenizer_files(folder / "tokenizer"))
    if ("vocab.txt" if info.is_wordpiece else "tokenizer.json") in info.files:
        _check_vocabulary(given, info)
    return info


def _check_vocabulary(given: Field, info: TokenizerInfo) -> None:
    """Check that the vocabulary next to the shards is theirs, because the export includes it.

    Raises:
        DataError: it is a different one, its special tokens have different ids, or vocab.txt and
            tokenizer.json contradict each other.
    """
    file = info.main_file
    there = load_tokenizer_info(file.parent, *info.rules)
    if there.fingerprint != info.fingerprint:
        raise DataError(
            f"{file}: not the vocabulary that the shards were made with (fingerprint "
            f"{there.fingerprint[:12]}..., but the manifest says {info.fingerprint[:12]}...)"
        )
    if there.vocab_size != info.vocab_size:
        given["vocab_size"].fail(f"{there.vocab_size}, the number of tokens in {file}")
    for name, number in there.special_ids.items():
        if info.special_ids[name] != number:
            given["special_ids"][name].fail(
                f"{number}, the id of {there.special_tokens[name]} in {file}"
            )


def _documents_from(documents: Field) -> dict[str, Any]:
    documents.only(("read", "written", "dropped", "repeated"))
    for name in ("read", "written"):
        documents[name].integer()
    if (repeated := documents.get("repeated")) is not None:
        repeated.integer()
    for _, count in documents["dropped"].items():
        count.integer()
    return documents.mapping()


def _source_from(source: Field) -> dict[str, Any]:
    for name in ("name", "kind", "licence"):
        source[name].text()
    for name in _SOURCE_COUNTS:
        if name in source.mapping() or name != "documents_repeated":
            source[name].integer()
    if (weight := source.get("weight")) is not None:
        weight.number(0)
    for _, count in source["dropped"].items():
        count.integer()
    for file in source["files"].elements():
        file["name"].text()
        file["bytes"].integer()
    return source.mapping()


def _instance_from(instance: Field, folder: Path) -> dict[str, Any]:
    for name in ("folder", "dataset"):
        instance[name].text()
    for name in ("sequence_length", "max_predictions", "dupe_factor"):
        instance[name].integer(1)
    instance["masked_lm_prob"].number(0)
    for file in instance["files"].elements():
        file.only(_INSTANCE_FILE)
        _file_from(file, folder)
        file["rows"].integer()
    return instance.mapping()


def _check_counts(path: Path, documents: dict[str, Any]) -> None:
    read, written = documents["read"], documents["written"]
    dropped = sum(documents["dropped"].values())
    if read != written + dropped:
        raise DataError(
            f"{path}: the numbers of documents do not add up: {read} read, {written} written, "
            f"{dropped} dropped"
        )
