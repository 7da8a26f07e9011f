"""Reads and writes CoNLL columns: one word per line, its tag in the last column.

Comment lines are skipped, and end a sentence: ``# key = value`` (CoNLL-U), ``# id 6f2a domain=en``
(MultiCoNER), ``#begin document`` (OntoNotes). A word ``#`` with columns and a tag is a word.

Both tag schemes are read and returned as IOB2. In IOB1 (CoNLL-2003 as published) an entity starts
with ``I-``, and ``B-`` occurs only between two adjacent entities of the same type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bertds.display.words import count, listed
from bertds.errors import DataError
from bertds.finetune.readers.text import read_records
from bertds.finetune.records import BYTE_ORDER_MARK, BadRows, Sentence, lines_of
from bertds.system.logs import log

DOCUMENT_START = "-DOCSTART-"
TAG = re.compile(r"O|[BIES]-.+")
_COMMENT = re.compile(r"#(begin|end) document\b|#\s*[\w:.-]+\s*=\s|#\s+id\s+\S+(\s+\w+=\S+)*\s*$")
_NEMO_TEXT = re.compile(r"text(_.*)?\.txt")


def read_conll(
    path: Path,
    *,
    split: str,
    tagged: bool = True,
    lines: Iterable[tuple[int, str]] | None = None,
) -> tuple[list[Sentence], BadRows]:
    """Read one file of CoNLL columns, separated by tabs or spaces.

    A word with a malformed line is never dropped alone, because this would shift the sentence. In
    training data its whole sentence is left out and counted; elsewhere the line is refused.

    Args:
        path: a plain or gzip file.
        split: train, dev or test.
        tagged: False reads only words (a file to predict).
        lines: (number, line) pairs that replace the file's.

    Returns:
        The sentences, tags in IOB2, and the malformed lines.

    Raises:
        DataError: malformed lines; see :class:`BadRows`.
    """
    # The sentence in progress, and whether one of its lines is malformed.
    bad = BadRows(path, tolerated=split == "train")
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[tuple[int, str]] = []
    first_line, broken, new_document = 0, False, False
    separator: str | None = None
    columns = 0

    def end_sentence() -> None:
        nonlocal words, tags, broken, new_document
        if words and not broken:
            texts = [tag for _, tag in tags] if tagged else None
            sentences.append(Sentence(words, texts, first_line, new_document))
            new_document = False
        words, tags, broken = [], [], False

    for number, line in lines_of(path) if lines is None else lines:
        # A blank line or a comment ends a sentence.
        if not line.strip(" \t"):
            end_sentence()
            continue
        if is_comment(line, columns, tagged=tagged, inside=bool(words) or broken):
            end_sentence()
            continue
        # The first word line decides the separator and the number of columns.
        if separator is None:
            separator = "\t" if "\t" in line else " "
        values = [
            value for value in line.strip(" \t").split(separator) if value or separator == "\t"
        ]
        if values[0] == DOCUMENT_START:
            end_sentence()
            new_document = True
            continue
        if not columns:
            columns = len(values)
        if not words and not broken:
            first_line = number
        # A malformed line spoils its sentence, but reading continues, to report all of them.
        reason = _fault(values, columns, tagged)
        if reason:
            bad.add(number, reason)
            broken = True
            continue
        words.append(values[0])
        if tagged:
            tags.append((number, values[-1]))
    end_sentence()
    bad.finish(len(sentences))
    if tagged:
        _to_iob2(path, sentences)
    return sentences, bad


def is_comment(line: str, columns: int, *, tagged: bool, inside: bool) -> bool:
    """Return whether a line is a comment.

    Args:
        line: the line.
        columns: number of columns of the word lines; 0 = not known yet.
        tagged: whether word lines end with a tag.
        inside: whether a sentence has begun; an odd line inside is a malformed word, not a comment.
    """
    if _COMMENT.match(line):
        return True
    if inside:
        return False
    fields = line.split()
    if not line.startswith("#") or fields[0] != "#" or len(fields) == columns == 1:
        return False
    # A line with a lone "#" is that word if the rest has the form of its columns.
    if columns and len(fields) != columns:
        return True
    return len(fields) > 1 and tagged and not TAG.fullmatch(fields[-1])


def _fault(values: list[str], columns: int, tagged: bool) -> str:
    if len(values) != columns:
        return f"{count(len(values), 'column')}, but {columns} in the first line"
    if not values[0]:
        return "the first column, which is the word, is empty"
    if values[0] == BYTE_ORDER_MARK:
        return "a lone byte order mark (U+FEFF) as the word"
    if tagged and columns < 2:
        return "only one column: the tag is missing"
    if tagged and not TAG.fullmatch(values[-1]):
        return f"{values[-1]!r} is not a tag (O, B-TYPE, I-TYPE)"
    return ""


def _to_iob2(path: Path, sentences: list[Sentence]) -> None:
    """Convert IOB1, IOB2 and IOBES to IOB2 in place; warn of a mixture."""
    orphans: list[int] = []  # lines of an I- that starts an entity
    starts = 0  # B- that starts an entity after O or another type: typical of IOB2
    for sentence in sentences:
        assert sentence.tags is not None
        previous = "O"
        for offset, tag in enumerate(sentence.tags):
            prefix, _, kind = tag.partition("-")
            if tag != "O" and (previous == "O" or previous != kind):
                starts += prefix in "BS"
                if prefix in "IE":
                    orphans.append(sentence.line + offset)
            previous = kind if tag != "O" else "O"
        sentence.tags = iob2(sentence.tags)
    if orphans and len(orphans) <= starts:
        # An IOB2 file with a few entities that start with I-: read them as conlleval does.
        log.warning(
            "%s: %d of %d entities of this IOB2 file start with I- (line %s); read as B-",
            path,
            len(orphans),
            len(orphans) + starts,
            listed(orphans, 5),
        )


def iob2(tags: Sequence[str]) -> list[str]:
    """Return one sentence's tags in IOB2, from IOB1, IOB2 or IOBES."""
    result = []
    previous = "O"
    for tag in tags:
        prefix, _, kind = tag.partition("-")
        if tag == "O":
            result.append("O")
            previous = "O"
            continue
        starts = prefix in "BS" or previous != kind
        result.append(("B-" if starts else "I-") + kind)
        previous = "" if prefix in "ES" else kind  # E and S end their entity
    return result


def is_nemo_text(path: Path) -> bool:
    """Return whether a file is NeMo's ``text_*.txt``, whose tags are in ``labels_*.txt``."""
    name = path.name.removesuffix(".gz")
    return _NEMO_TEXT.fullmatch(name) is not None and not path.name.startswith("labels")


def read_nemo(path: Path, *, split: str) -> tuple[list[Sentence], BadRows]:
    """Read NeMo's two files: a sentence per line, words separated by spaces, and tags likewise.

    Args:
        path: ``text_*.txt``; the tags are in ``labels_*.txt`` of the same folder, which a file to
            predict does not need.
        split: train, dev or test.

    Returns:
        The sentences, tags in IOB2, and the malformed lines.

    Raises:
        DataError: there are no labels, a different number of lines, or malformed lines; see
            :class:`BadRows`.
    """
    bad = BadRows(path, tolerated=split == "train")
    labels = path.with_name("labels" + path.name.removeprefix("text"))
    lines = list(lines_of(path))
    if not labels.is_file():
        if split != "test":
            raise DataError(
                f"{path}: {labels.name}, which contains the tags, is missing from its folder"
            )
        return [Sentence(line.split(), None, n) for n, line in lines if line.strip()], bad
    tag_lines = [line for _, line in lines_of(labels)]
    if len(tag_lines) != len(lines):
        raise DataError(
            f"{path}: {count(len(lines), 'line')}, but {labels.name} has {len(tag_lines)}"
        )
    sentences = []
    for (number, line), tag_line in zip(lines, tag_lines, strict=True):
        words, tags = line.split(), tag_line.split()
        odd = next((tag for tag in tags if not TAG.fullmatch(tag)), None)
        if len(words) != len(tags):
            bad.add(
                number,
                f"{count(len(words), 'word')}, but {count(len(tags), 'tag')} in {labels.name}",
            )
        elif odd is not None:
            bad.add(number, f"{odd!r} in {labels.name} is not a tag (O, B-TYPE, I-TYPE)")
        elif words:  # a line that is blank in both files is not a sentence
            sentences.append(Sentence(words, tags, number))
    bad.finish(len(sentences))
    _to_iob2(path, sentences)
    return sentences, bad


def read_ner_jsonl(path: Path, *, split: str, tagged: bool = True) -> list[Sentence]:
    """Read JSONL with ``tokens`` (or ``words``) and ``tags`` (or ``ner_tags``) as lists of text.

    Raises:
        DataError: a key is missing, or the two lists differ in length; by line.
    """
    sentences = []
    for number, record in read_records(path):
        words = record.get("tokens", record.get("words"))
        tags = record.get("tags", record.get("ner_tags"))
        if not isinstance(words, list) or not words:
            raise DataError(f"{path}, line {number}: no list 'tokens'")
        if not tagged or (tags is None and split == "test"):
            sentences.append(Sentence(list(map(str, words)), None, number))
            continue
        if not isinstance(tags, list) or len(tags) != len(words):
            found = count(len(tags), "tag") if isinstance(tags, list) else "no tags"
            raise DataError(f"{path}, line {number}: {count(len(words), 'token')}, but {found}")
        for tag in tags:
            if not isinstance(tag, str) or not TAG.fullmatch(tag):
                raise DataError(f"{path}, line {number}: {tag!r} is not a tag (O, B-TYPE, I-TYPE)")
        sentences.append(Sentence(list(map(str, words)), iob2(tags), number))
    if not sentences:
        raise DataError(f"{path}: no rows")
    return sentences


def label_list(sentences: Iterable[Sentence]) -> tuple[str, ...]:
    """Return O, then B- and I- of every type seen, types sorted."""
    types = sorted({tag[2:] for s in sentences for tag in s.tags or () if tag != "O"})
    return ("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


def unseen_types(sentences: Iterable[Sentence], labels: Iterable[str]) -> dict[str, list[int]]:
    """Return the entity types that ``labels`` lacks, with the lines of their sentences."""
    known = {label[2:] for label in labels}
    unseen: dict[str, list[int]] = {}
    for sentence in sentences:
        for kind in sorted({tag[2:] for tag in sentence.tags or () if tag != "O"}):
            if kind not in known:
                unseen.setdefault(kind, []).append(sentence.line)
    return unseen


def format_conll(sentences: Iterable[Sentence], predicted: Iterable[Sequence[str]]) -> str:
    """Return ``word gold predicted`` lines, the input of the official ``conlleval`` (IOB2)."""
    lines = []
    for sentence, tags in zip(sentences, predicted, strict=True):
        if sentence.after_document_start:
            lines += [f"{DOCUMENT_START} O O", ""]
        gold = sentence.tags or ["O"] * len(sentence.words)
        lines += [f"{w} {g} {p}" for w, g, p in zip(sentence.words, gold, tags, strict=True)]
        lines.append("")
    return "\n".join(lines) + "\n"
