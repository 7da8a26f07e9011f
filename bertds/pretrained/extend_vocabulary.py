"""Give a model new words: a domain's vocabulary in addition to the old one (or in its place).

A new piece starts as the mean of the vectors of the pieces that the old vocabulary cuts it into,
so that the model begins near what it knew (Gee et al. 2022, Fast Vocabulary Transfer). Its output
bias starts as the mean of theirs.

    bertds extend MODEL DIR --words pieces.txt      # old vocabulary, then the new pieces
    bertds extend MODEL DIR --vocab vocab.txt       # another vocabulary altogether
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from bertds.data.model_names import vocabulary_path
from bertds.data.vocabulary import load_tokenizer_info
from bertds.data.vocabulary_file import vocabulary_file
from bertds.errors import ConfigError, DataError, reason_of
from bertds.model.build import PreTrainingModel, build_model
from bertds.pretrained import hf_weights
from bertds.pretrained.convert import convert
from bertds.pretrained.load import PretrainedModel
from bertds.pretrained.transformers_api import open_model
from bertds.system.atomic_files import write_json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_pieces(path: Path) -> list[str]:
    """Read one piece per line.

    Raises:
        DataError: no line, an empty line, a blank inside a piece, or a piece that occurs twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)})") from None
    pieces = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    seen: dict[str, int] = {}
    for number, piece in enumerate(pieces, start=1):
        if not piece or piece != piece.strip() or " " in piece or "\t" in piece:
            raise DataError(f"{path}, line {number}: the token is empty or contains a space")
        if piece in seen:
            raise DataError(f"{path}, line {number}: {piece!r} is already on line {seen[piece]}")
        seen[piece] = number
    if not pieces:
        raise DataError(f"{path}: contains no tokens")
    return pieces


def split_piece(piece: str, vocabulary: dict[str, int]) -> list[int]:
    """Cut a piece into pieces of a vocabulary, longest first (WordPiece).

    Returns:
        Their numbers; empty if that cannot be done.
    """
    continued = piece.startswith("##")
    text, begin, numbers = piece.removeprefix("##"), 0, []
    while begin < len(text):
        prefix = "##" if continued or begin else ""
        for end in range(len(text), begin, -1):
            number = vocabulary.get(prefix + text[begin:end])
            if number is not None:
                break
        else:
            if continued and begin == 0:
                # A word's inside that the old vocabulary only knows as a word of its own.
                number = vocabulary.get(text)
                return [number] if number is not None else []
            return []
        numbers.append(number)
        begin = end
    return numbers


def extended(
    trained: PretrainedModel, old: list[str], new: list[str]
) -> tuple[PreTrainingModel, int]:
    """Return the model with another vocabulary, and the number of pieces without a split.

    A piece that both vocabularies contain keeps its vector. Another one gets the mean of the pieces
    that it splits into. One without a split gets the vector of [UNK].
    """
    numbers = {piece: number for number, piece in enumerate(old)}
    model = build_model(trained.config, len(new))
    source = hf_weights.to_transformers_state_dict(trained.model)
    # The word table and the output bias have one row per piece; all other weights stay.
    table_name, bias_name = (name for name in hf_weights.VOCABULARY_ROWS if name in source)
    table, bias = source[table_name], source[bias_name]
    rows, biases, unsplit = [], [], 0
    for piece in new:
        if piece in numbers:
            split = [numbers[piece]]
        else:
            split = split_piece(piece, numbers)
            if not split:
                unsplit += 1
                split = [numbers["[UNK]"]]
        rows.append(table[split].mean(0))
        biases.append(bias[split].mean())
    state = {**source, table_name: torch.stack(rows), bias_name: torch.stack(biases)}
    hf_weights.load_transformers_state_dict(model, state)
    return model.eval(), unsplit


def extend(
    source: Path | str,
    out: Path,
    *,
    words: Path | None,
    vocab: Path | None,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Write a Hugging Face folder of a model with an extended or a different vocabulary.

    Returns:
        The number of new pieces, and how many of them had no split.

    Raises:
        ConfigError: neither or both of ``words`` and ``vocab`` are given.
        DataError: the pieces are malformed, or none is new.
    """
    if vocab is not None:
        vocab = vocabulary_file(vocabulary_path(vocab))
    if (words is None) == (vocab is None):
        raise ConfigError("give --words FILE (tokens to add) or --vocab FILE (a whole vocabulary)")
    trained = open_model(source)
    if trained.tokenizer_folder is None:
        raise DataError(f"{source}: neither vocab.txt nor tokenizer.json found")
    tokenizer = load_tokenizer_info(trained.tokenizer_folder, *(trained.rules or ()))
    if not tokenizer.is_wordpiece:
        raise DataError(
            f"{source}: the tokenizer is {tokenizer.model}; only WordPiece can be extended"
        )
    # --words adds to the old vocabulary; --vocab replaces it.
    old = tokenizer.vocabulary()
    if vocab is not None and vocab.suffix == ".json":
        given = load_tokenizer_info(vocab).vocabulary()
    else:
        given = read_pieces(words or vocab)  # type: ignore[arg-type]
    if words is not None:
        known = set(old)
        new = old + [piece for piece in given if piece not in known]
    else:
        lacking = [piece for piece in SPECIAL if piece not in given]
        if lacking:
            raise DataError(f"{vocab}: does not contain {', '.join(lacking)}, which BERT requires")
        new = given
    added = len(set(new) - set(old))
    if not added:
        raise DataError(f"{words or vocab}: the model already has all of these tokens")
    # The new weights, and a tokenizer that applies the same rules as the old one.
    model, unsplit = extended(trained, old, new)
    with tempfile.TemporaryDirectory(prefix="bertds-") as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(new) + "\n", encoding="utf-8")
        write_json(
            Path(folder) / "tokenizer_config.json",
            tokenizer.rules.to_transformers(trained.config.max_position_embeddings),
        )
        changed = replace(
            trained,
            model=model,
            vocab_size=len(new),
            tokenizer_folder=Path(folder),
            missing=[],
            pad_token_id=new.index("[PAD]"),
        )
        convert(changed, "hf", out, overwrite=overwrite)
    return added, unsplit
