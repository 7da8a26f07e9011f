"""Chooses the columns of a user's own data, in a file or in a dataset."""

from __future__ import annotations

from pathlib import Path

from bertds.errors import DataError

TEXT_NAMES = ("text", "sentence", "sentence1", "text_a", "premise", "question1")
PAIR_NAMES = ("text_pair", "sentence2", "text_b", "hypothesis", "question2", "pair")
LABEL_NAMES = ("label", "labels", "score", "class", "target")
ID_NAMES = ("index", "id", "guid")
USUAL_NAMES = frozenset((*TEXT_NAMES, *PAIR_NAMES, *LABEL_NAMES, *ID_NAMES))


def choose_column(
    where: Path | str, columns: list[str], given: str, usual: tuple[str, ...], role: str
) -> str | None:
    """Return the column for a role: the given one, or the first of the usual names.

    Raises:
        DataError: the given column does not exist.
    """
    if given:
        if given not in columns:
            raise DataError(f"{where}: no column {given!r} for the {role}; found {columns}")
        return given
    return next((name for name in usual if name in columns), None)


def own_columns(
    where: Path | str, columns: list[str], given: tuple[str, str, str], split: str
) -> tuple[str, str | None, str | None]:
    """Return the columns of text, second text and label in a user's own data.

    Args:
        where: the file or the dataset, for messages.
        columns: all columns.
        given: the names that the user gave; "" = one of the usual names.
        split: train, dev or test; a test split needs no labels.

    Raises:
        DataError: a column is missing, or has two roles.
    """
    text = choose_column(where, columns, given[0], TEXT_NAMES, "text")
    pair = choose_column(where, columns, given[1], PAIR_NAMES, "second text")
    label = choose_column(where, columns, given[2], LABEL_NAMES, "label")
    if text is None:
        raise DataError(
            f"{where}: no text column ({', '.join(TEXT_NAMES)}); found {columns}; set --text-column"
        )
    if label is None and split != "test":
        raise DataError(
            f"{where}: no label column ({', '.join(LABEL_NAMES)}); found {columns}; set "
            "--label-column"
        )
    used = (text, pair, None if split == "test" else label)
    if doubled := next((name for name in used if name and used.count(name) > 1), None):
        raise DataError(
            f"{where}: column {doubled!r} is used twice; text, second text and label must be in "
            "different columns (--text-column, --pair-column, --label-column)"
        )
    return text, pair, label
