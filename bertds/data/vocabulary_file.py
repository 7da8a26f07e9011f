"""The file of a folder that contains its vocabulary: ``vocab.txt`` or ``tokenizer.json``."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

from bertds.data import tokenizer_json
from bertds.errors import DataError

VOCAB = "vocab.txt"
SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def read_vocabulary(path: Path | str) -> list[str]:
    """Read a ``vocab.txt``: one token per line; the line number, from 0, is the id.

    Raises:
        DataError: the file is missing, not UTF-8, or contains a token twice.
    """
    path = Path(path)
    try:
        # Split only at "\n": some vocabularies contain U+2028 or U+0085 as tokens.
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; is this a vocab.txt?") from error
    if text.startswith("\ufeff"):
        raise DataError(
            f"{path}: starts with a byte order mark, which would become part of its first token; "
            "save it as UTF-8 without one (sed -i '1s/^\\xef\\xbb\\xbf//' FILE)"
        )
    if "\r" in text and "\n" not in text:
        raise DataError(
            f"{path}: its lines end with CR, but those of a vocab.txt end with LF; convert it "
            "(tr '\\r' '\\n' < FILE > NEW)"
        )
    tokens = text.split("\n")
    if tokens and tokens[-1] == "":
        tokens.pop()
    if "\r" in text:  # line endings of Windows
        tokens = [token.removesuffix("\r") for token in tokens]
    if len(set(tokens)) != len(tokens):
        twice, count = Counter(tokens).most_common(1)[0]
        assert count > 1
        raise DataError(f"{path}: the token {twice!r} occurs twice")
    return tokens


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder contains a vocab.txt or a tokenizer.json."""
    return any((folder / name).is_file() for name in (VOCAB, tokenizer_json.FILE))


_SENTENCEPIECE = (".model", ".spm")
_OTHER_FORMS = ("vocab.json", "merges.txt", *_SENTENCEPIECE)
_CONVERT = (
    "convert it to a tokenizer.json with transformers: "
    "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW)"
)


def vocabulary_file(path: Path) -> Path:
    """Return the file that decides the vocabulary of a file or folder.

    If a folder has both files and they differ, tokenizer.json decides, as in transformers.

    Raises:
        DataError: there is no vocabulary, or the two files contradict each other.
    """
    if not path.is_dir():
        if path.name.endswith(_SENTENCEPIECE):
            raise DataError(f"{path}: neither a vocab.txt nor a tokenizer.json; {_CONVERT}")
        if path.exists() and not path.is_file():  # a pipe can be read only once
            raise DataError(f"{path}: neither a file nor a folder")
        return path
    names = [VOCAB, tokenizer_json.FILE]
    if all((path / name).is_file() for name in names):
        states = [(path / name).stat() for name in names]
        agree = _agree(path, *((s.st_ino, s.st_size, s.st_mtime_ns) for s in states))
        return path / names[0 if agree else 1]
    for name in names:
        if (path / name).is_file():
            return path / name
    held = sorted(p.name for p in path.iterdir())
    there = ", ".join(held[:6]) or "nothing"
    remedy = f"; {_CONVERT}" if any(name.endswith(_OTHER_FORMS) for name in held) else ""
    raise DataError(
        f"{path}: neither {' nor '.join(names)} in this folder (found: {there}){remedy}"
    )


@lru_cache(maxsize=8)
def _agree(folder: Path, *states: tuple[int, ...]) -> bool:
    """Return whether a folder's vocab.txt is equivalent to its tokenizer.json.

    tokenizer.json may have more tokens, which were added later, another model, or a normalizer that
    is not BERT's. vocab.txt then lacks something, but contradicts nothing.

    Args:
        folder: with both files.
        states: change when one of the files does; the key of the cache, because parsing is slow.

    Raises:
        DataError: vocab.txt is BERT's, but one of its ids is another token in tokenizer.json.
    """
    content = tokenizer_json.read_tokenizer(folder / tokenizer_json.FILE)
    theirs = tokenizer_json.bert_wordpiece(content)
    try:
        ours = read_vocabulary(folder / VOCAB)
    except DataError:
        if theirs is not None:
            raise
        return False  # a vocab.txt of another model has another format
    if theirs == ours:
        return True
    # Which of two vocabularies a model was trained with cannot be known from the files.
    by_id = tokenizer_json.tokens_by_id(content)
    if set(SPECIAL_TOKENS.values()) <= set(ours):
        for number, token in enumerate(ours):
            if by_id.get(number) != token:
                raise DataError(
                    f"{folder}: {VOCAB} and {tokenizer_json.FILE} contain different vocabularies: "
                    f"id {number} is {token!r:.60} in {VOCAB}, and "
                    f"{by_id.get(number, 'missing')!r:.60} in {tokenizer_json.FILE}. transformers "
                    f"uses {tokenizer_json.FILE}; remove the file that is not the model's"
                )
    return False
