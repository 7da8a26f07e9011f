"""Token shards: flat token ids with sentence and document offsets, in one contiguous HDF5 file.

```text
token_ids         uint16|uint32 [T]      all tokens, without special ones
sentence_offsets  int64 [sentences + 1]  sentence s is token_ids[offsets[s] : offsets[s + 1]]
document_offsets  int64 [documents + 1]  document d is sentences offsets[d] ... offsets[d + 1] - 1
word_starts       uint8 [ceil(T / 8)]    bit t (lowest first): token t begins a word; missing for
                                         WordPiece, whose pieces show it themselves
```

Contiguous and uncompressed, so that the file is mapped into memory once per machine and read on
demand. It is HDF5, so that every tool can read it. Equal contents give equal bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from bertds.data.formats.hdf5_files import attributes, dataset, new_hdf5, open_hdf5
from bertds.data.formats.manifest import ShardInfo
from bertds.errors import DataError
from bertds.system.atomic_files import atomic_path, sha256_file

SHARD_FORMAT = "bertds-token-shard"
SHARD_VERSION = 1
Verify = Literal["full", "size"]


def offsets_of(lengths: np.ndarray | list[int]) -> np.ndarray:
    """Return int64 [N + 1]: 0, followed by the running sums of the lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def shard_name(number: int) -> str:
    """Return the file name of shard ``number``, ``shard_00042.h5``."""
    return f"shard_{number:05d}.h5"


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest dtype for ids: uint16 up to 65,535 tokens, otherwise uint32."""
    return np.dtype("<u2") if vocab_size <= 65_535 else np.dtype("<u4")


def write_token_shard(
    path: Path | str,
    token_ids: np.ndarray,
    sentence_offsets: np.ndarray,
    document_offsets: np.ndarray,
    *,
    vocab_size: int,
    fingerprint: str,
    word_starts: np.ndarray | None = None,
) -> ShardInfo:
    """Write one shard atomically and deterministically.

    Args:
        path: ``OUT/<split>/shard_00000.h5``; its folder must exist.
        token_ids: integers [T], each below ``vocab_size``.
        sentence_offsets: integers [sentences + 1], strictly increasing from 0 to T.
        document_offsets: integers [documents + 1], strictly increasing from 0 to sentences.
        vocab_size: size of the tokenizer's vocabulary; decides the dtype of the ids.
        fingerprint: the tokenizer's fingerprint.
        word_starts: bool [T], the tokens that begin a word; None for WordPiece.

    Returns:
        The shard's entry for the manifest; ``file`` is ``<split>/shard_00000.h5``.

    Raises:
        ValueError: offsets or ids violate the rules above.
        BertdsError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    token_ids = np.asarray(token_ids)
    # A reader indexes memory with ids and offsets, so they are checked before they are written.
    if token_ids.size and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < vocab_size:
        raise ValueError(f"{path}: token ids must be in [0, {vocab_size})")
    arrays = {
        "token_ids": token_ids.astype(token_dtype(vocab_size), copy=False),
        "sentence_offsets": np.asarray(sentence_offsets, dtype="<i8"),
        "document_offsets": np.asarray(document_offsets, dtype="<i8"),
    }
    for problem in offset_problems(*arrays.values()):
        raise ValueError(f"{path}: {problem}")
    if word_starts is not None:
        arrays["word_starts"] = np.packbits(word_starts, bitorder="little")
    with atomic_path(path) as temporary:
        # Aligned, so that a mapped array has the type and the speed of one in memory.
        layout = {"libver": ("v110", "v110"), "alignment_threshold": 1, "alignment_interval": 64}
        with new_hdf5(temporary, **layout) as file:
            file.attrs["format"] = SHARD_FORMAT
            file.attrs["version"] = SHARD_VERSION
            file.attrs["vocab_size"] = vocab_size
            file.attrs["fingerprint"] = fingerprint
            for name, array in arrays.items():
                # No time stamps: equal contents must give equal bytes.
                file.create_dataset(name, data=array, track_times=False)
        size, checksum = temporary.stat().st_size, sha256_file(temporary)
    return ShardInfo(
        file=f"{path.parent.name}/{path.name}",
        bytes=size,
        sha256=checksum,
        documents=len(arrays["document_offsets"]) - 1,
        sentences=len(arrays["sentence_offsets"]) - 1,
        tokens=len(arrays["token_ids"]),
    )


def offset_problems(tokens: np.ndarray, sentences: np.ndarray, documents: np.ndarray) -> list[str]:
    """Return what is wrong with the offsets, which index memory later; empty if nothing is."""
    problems = []
    for name, offsets, total in (
        ("sentence_offsets", sentences, len(tokens)),
        ("document_offsets", documents, len(sentences) - 1),
    ):
        if len(offsets) < 2:
            problems.append(f"{name} is empty")
        elif offsets[0] != 0 or offsets[-1] != total:
            problems.append(
                f"{name} runs from {offsets[0]} to {offsets[-1]}, expected 0 to {total}"
            )
        elif not np.all(offsets[1:] > offsets[:-1]):
            problems.append(f"{name} does not increase strictly (an empty sentence or document)")
    return problems


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class TokenShard:
    """The three arrays of a shard, read-only views of a memory map (or plain arrays)."""

    name: str
    """The file, for messages."""
    token_ids: np.ndarray
    sentence_offsets: np.ndarray
    document_offsets: np.ndarray
    mapping: mmap.mmap | None = None
    word_starts: np.ndarray = field(default_factory=lambda: _read_only(np.zeros(0, np.uint8)))
    """uint8 [ceil(T / 8)], or empty for WordPiece."""

    @property
    def documents(self) -> int:
        """The number of documents."""
        return len(self.document_offsets) - 1

    @property
    def sentences(self) -> int:
        """The number of sentences."""
        return len(self.sentence_offsets) - 1

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return len(self.token_ids)

    @staticmethod
    def from_arrays(
        name: str,
        token_ids: np.ndarray,
        sentence_offsets: np.ndarray,
        document_offsets: np.ndarray,
        word_starts: np.ndarray | None = None,
    ) -> TokenShard:
        """Create a shard from arrays in memory (uint16 or uint32 ids, int64 offsets).

        Raises:
            ValueError: the offsets are not valid for a shard.
        """
        sentence_offsets = np.asarray(sentence_offsets, np.int64)
        document_offsets = np.asarray(document_offsets, np.int64)
        arrays = (token_ids, sentence_offsets, document_offsets)
        for problem in offset_problems(*arrays):
            raise ValueError(f"{name}: {problem}")
        shard = TokenShard(
            name, _read_only(token_ids), _read_only(sentence_offsets), _read_only(document_offsets)
        )
        if word_starts is None:
            return shard
        return replace(shard, word_starts=_read_only(np.packbits(word_starts, bitorder="little")))

    @staticmethod
    def outline(
        name: str, sentence_lengths: np.ndarray, document_lengths: np.ndarray
    ) -> TokenShard:
        """Return a shard without its tokens, which is enough to count its samples.

        Args:
            name: for messages.
            sentence_lengths: tokens of each sentence.
            document_lengths: sentences of each document.
        """
        sentences, documents = (
            _read_only(offsets_of(lengths)) for lengths in (sentence_lengths, document_lengths)
        )
        return TokenShard(name, _read_only(np.zeros(0, np.uint16)), sentences, documents)

    def read_ahead(self) -> None:
        """Ask the kernel to read the file into the page cache in large requests."""
        if self.mapping is not None and hasattr(mmap, "MADV_WILLNEED"):
            self.mapping.madvise(mmap.MADV_WILLNEED)

    @staticmethod
    def open(
        path: Path | str,
        info: ShardInfo | None = None,
        verify: Verify = "full",
        fingerprint: str | None = None,
        vocab_size: int | None = None,
    ) -> TokenShard:
        """Map a shard into memory.

        Args:
            path: the shard file.
            info: its entry in the manifest; None checks only the structure of the file.
            verify: "full" compares the SHA-256 with ``info``, "size" only the size.
            fingerprint: the tokenizer that the shard must have been made with.
            vocab_size: with "full", compared with every token id: an id beyond the vocabulary
                would read past the word embeddings.

        Raises:
            DataError: the file is missing, truncated, damaged, or of a different format, version or
                tokenizer.
        """
        path = Path(path)
        if info is not None:
            _verify_file(path, info, verify)
        # HDF5 only locates the arrays; it is closed before they are read.
        with open_hdf5(path, "a token shard") as file:
            places = {n: _place(path, file, n) for n in ARRAY_TYPES}
            if "word_starts" in file:
                places["word_starts"] = _place(path, file, "word_starts")
        _check_header(path, places.values(), fingerprint)
        try:
            with open(path, "rb") as raw:
                mapping = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be mapped ({error})") from error
        # Every array must end inside the file.
        arrays = {}
        for name, (dtype, count, offset) in places.items():
            if offset + count * dtype.itemsize > len(mapping):
                raise DataError(f"{path}: truncated inside {name}")
            arrays[name] = _read_only(np.frombuffer(mapping, dtype, count, offset))
        shard = TokenShard(str(path), **arrays, mapping=mapping)
        # The compiled loops do not check indices, so this check is never skipped.
        for problem in offset_problems(*(arrays[name] for name in ARRAY_TYPES)):
            raise DataError(f"{path}: damaged: {problem}")
        if len(shard.word_starts) not in (0, -(-shard.tokens // 8)):
            raise DataError(f"{path}: damaged: {len(shard.word_starts)} bytes of word_starts")
        if vocab_size is not None and verify == "full":
            _check_ids(path, shard.token_ids, vocab_size)
        if info is not None:
            counts = (shard.documents, shard.sentences, shard.tokens)
            if counts != (info.documents, info.sentences, info.tokens):
                raise DataError(
                    f"{path}: contains {counts} documents, sentences, tokens; the manifest says "
                    f"{(info.documents, info.sentences, info.tokens)}"
                )
        return shard


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a read-only, aligned view, so that compiled loops see one type for all arrays."""
    array = np.require(array, requirements=["C", "ALIGNED"]).view()
    array.flags.writeable = False
    return array


ARRAY_TYPES = {
    "token_ids": ("<u2", "<u4"),
    "sentence_offsets": ("<i8",),
    "document_offsets": ("<i8",),
}
_OPTIONAL_TYPES = {"word_starts": ("|u1",)}


_IDS_AT_ONCE = 1 << 22


def _check_ids(path: Path, token_ids: np.ndarray, vocab_size: int) -> None:
    """Compare ids with the vocabulary size; the checksum has just read them into the page cache."""
    for start in range(0, len(token_ids), _IDS_AT_ONCE):
        largest = int(token_ids[start : start + _IDS_AT_ONCE].max())
        if largest >= vocab_size:
            raise DataError(
                f"{path}: contains token {largest}, but the vocabulary has {vocab_size} tokens (0 "
                f"to {vocab_size - 1})"
            )


def check_size(path: Path, info: ShardInfo) -> None:
    """Check that a shard is there in its full size.

    Raises:
        DataError: it is missing or truncated.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: missing, but listed in the manifest") from error
    if size != info.bytes:
        raise DataError(
            f"{path}: {size} bytes, but the manifest says {info.bytes}; prepare the data again"
        )


def _verify_file(path: Path, info: ShardInfo, verify: Verify) -> None:
    check_size(path, info)
    if verify == "full" and (found := sha256_file(path)) != info.sha256:
        raise DataError(
            f"{path}: damaged: SHA-256 {found[:12]}..., but the manifest says {info.sha256[:12]}..."
        )


def _check_header(
    path: Path, places: Iterable[tuple[np.dtype, int, int]], fingerprint: str | None
) -> None:
    # Attributes are read without the arrays' bytes; see :func:`attributes`.
    values = [(offset, count * dtype.itemsize) for dtype, count, offset in places]
    found = attributes(path, ("format", "version", "fingerprint"), values)
    if found.get("format") != SHARD_FORMAT:
        raise DataError(f"{path}: not a token shard (format {found.get('format')!r})")
    if found.get("version") != SHARD_VERSION:
        raise DataError(
            f"{path}: shard version {found.get('version')}, but this version of bertds reads "
            f"version {SHARD_VERSION}"
        )
    if fingerprint is not None and found.get("fingerprint") != fingerprint:
        raise DataError(
            f"{path}: made with another tokenizer (fingerprint "
            f"{str(found.get('fingerprint'))[:12]}..., expected {fingerprint[:12]}...)"
        )


def _place(path: Path, file: h5py.File, name: str) -> tuple[np.dtype, int, int]:
    """Return dtype, length and byte offset of a contiguous dataset."""
    found = dataset(path, file, name)
    if found is None:
        raise DataError(f"{path}: not a token shard: {name} is missing")
    types = [np.dtype(t) for t in (ARRAY_TYPES | _OPTIONAL_TYPES)[name]]
    if found.dtype not in types or found.ndim != 1:
        raise DataError(
            f"{path}: not a token shard: {name} is {found.dtype} with {found.ndim} dimensions"
        )
    offset = found.id.get_offset()
    if offset is None:
        raise DataError(f"{path}: {name} is empty, chunked or compressed, so cannot be mapped")
    return found.dtype, found.shape[0], int(offset)
