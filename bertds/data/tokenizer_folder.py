"""Writes tokenizer folders: all files agree, and transformers tokenizes as training did.

transformers takes the vocabulary from tokenizer.json, and the rules for text from tokenizer.json
or tokenizer_config.json, depending on the model's class. So a folder of BERT's WordPiece has both,
with the same rules. tokenizer.json of any other model decides alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertds.data import tokenizer_json
from bertds.data.model_names import TOKENIZER_PATTERNS
from bertds.data.tokenizer_json import JsonTokenizer
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info
from bertds.data.vocabulary_file import SPECIAL_TOKENS, VOCAB
from bertds.data.wordpiece_pipeline import wordpiece_pipeline
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.system.atomic_files import write_text
from bertds.system.json_fields import parse_json


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """Return the tokenizer's files in a folder by name."""
    return {name: folder / name for name in TOKENIZER_PATTERNS if (folder / name).is_file()}


def write_tokenizer(
    folder: Path, files: Mapping[str, Path], length: int, rules: WordPieceRules | None = None
) -> None:
    """Write a tokenizer's files such that transformers tokenizes as this project does.

    Args:
        folder: an existing folder without a tokenizer.
        files: name in the folder -> file; empty = no tokenizer.
        length: maximum number of tokens of a row, if the files name none.
        rules: how text was treated; they have precedence over the files. None = as in the files or,
            without a value there, as the vocabulary suggests.

    Raises:
        DataError: BERT cannot use the vocabulary, or the files contradict each other.
    """
    for name, source in files.items():
        shutil.copyfile(source, folder / name)
    # The folder of a published model is copied unchanged.
    complete = {tokenizer_json.FILE, tokenizer_json.CONFIG} <= set(files)
    if not files or (complete and rules is None):
        return
    info = load_tokenizer_info(folder, *(rules or ()))
    if info.is_wordpiece:
        _write_wordpiece(folder, info, length)
    else:
        JsonTokenizer(folder / tokenizer_json.FILE).write(folder, length)
        (folder / VOCAB).unlink(missing_ok=True)  # belongs to another tokenizer, or lacks tokens


def bert_tokenizer_json(tokens: Sequence[str], rules: WordPieceRules) -> str:
    """Return the contents of the ``tokenizer.json`` of BERT's WordPiece, with BERT's row layout.

    Args:
        tokens: the vocabulary by id, with BERT's special tokens.
        rules: the rules applied to text.
    """
    from tokenizers import AddedToken, decoders, processors

    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = wordpiece_pipeline(ids, rules)
    # BERT's row layout and special tokens, so that transformers builds the same rows.
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS.values()]
    )
    return str(tokenizer.to_str(pretty=True)) + "\n"


def bert_tokenizer_config(rules: WordPieceRules, length: int) -> dict[str, Any]:
    """Return the contents of the ``tokenizer_config.json`` of BERT's WordPiece."""
    names = {f"{name}_token": token for name, token in SPECIAL_TOKENS.items()}
    return {**rules.to_transformers(length), **names}


def _write_wordpiece(folder: Path, info: TokenizerInfo, length: int) -> None:
    """Make both JSON files state the rules of ``info``; add the file that is missing."""
    # First the names of the special tokens, which JsonTokenizer needs.
    config = folder / tokenizer_json.CONFIG
    given = tokenizer_json.read_json(config) if config.is_file() else {}
    # A length that the file names is kept, and so are settings that concern other programs.
    wanted = given | bert_tokenizer_config(info.rules, given.get("model_max_length", length))
    wanted.pop("auto_map", None)  # the code of another class
    if wanted != given:
        write_text(config, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")
    file = folder / tokenizer_json.FILE
    if not file.is_file():
        write_text(file, bert_tokenizer_json(info.vocabulary(), info.rules))
        return
    # Layout and rules are replaced if they differ; tokens that were added stay.
    text = JsonTokenizer(file).content.decode()
    content = parse_json(text)
    lower_case, *others = tokenizer_json.normalizer_rules(content).values()
    if WordPieceRules.of(bool(lower_case), *others) != info.rules:
        content["normalizer"] |= {
            "lowercase": info.rules.lower_case,
            "strip_accents": info.rules.strip_accents,
            "handle_chinese_chars": info.rules.chinese_characters,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_text(file, text)
