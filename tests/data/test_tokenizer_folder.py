"""A written tokenizer folder gives the ids of training in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bertds.data.tokenizer_folder import bert_tokenizer_json, tokenizer_files, write_tokenizer
from bertds.data.tokenizer_json import WORD_START, JsonTokenizer
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.system.logs import log
from data_prep.tokens.wordpiece import WordPieceEncoder

TOKENS = """[PAD] [UNK] [CLS] [SEP] [MASK] Café café cafe CAFÉ école École ecole Ecole über Über
uber Uber straße ##n 東 京 東京 ##京 한국 i i̇ İ istanbul İstanbul . naïve naive""".split()  # noqa: SIM905
TEXTS = [
    "Café café CAFÉ École.",
    "Über uber Straßen naïve",
    "東京 東 京東 école東京",
    "한국 İstanbul e\u0301cole \u00a0cafe\u0301",
]
CASES = [
    WordPieceRules.of(lower_case=True),
    WordPieceRules.of(lower_case=False),
    WordPieceRules.of(lower_case=True, strip_accents=False),
    WordPieceRules.of(lower_case=False, strip_accents=True),
    WordPieceRules.of(lower_case=True, chinese_characters=False),
]


def trained_ids(info: TokenizerInfo) -> list[list[int]]:
    """The ids that preparation and training use, without special tokens."""
    encoder = WordPieceEncoder(info.vocabulary(), info.rules)
    found = []
    for text in TEXTS:
        ids, _ = encoder.encode([text])
        found.append((ids & ~WORD_START).tolist())
    return found


def in_transformers(folder: Path, model_type: str) -> list[list[int]]:
    """The ids in transformers, in the folder of a model."""
    from transformers import AutoTokenizer

    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(folder)
    names = [getattr(loaded, f"{n}_token") for n in ("pad", "unk", "cls", "sep", "mask")]
    assert names == TOKENS[:5]
    cls, sep, word = (TOKENS.index(token) for token in ("[CLS]", "[SEP]", "naive"))
    row = loaded("naive", "naive", return_token_type_ids=True)
    assert row["input_ids"] == [cls, word, sep, word, sep]
    assert row["token_type_ids"] == [0, 0, 0, 1, 1]
    return [loaded(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def source(folder: Path, names: str, rules: WordPieceRules, **config: object) -> Path:
    """Write some of the three files, with the rules given."""
    folder.mkdir()
    if "vocab.txt" in names:
        (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    if "tokenizer.json" in names:
        content = bert_tokenizer_json(TOKENS, rules)
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    if "config" in names:
        values = {**rules.to_transformers(128), **config}
        (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
@pytest.mark.parametrize("rules", CASES, ids=lambda rules: rules.casing)
@pytest.mark.parametrize(
    "names", ["vocab.txt", "vocab.txt config", "vocab.txt tokenizer.json config", "tokenizer.json"]
)
def test_the_rules_of_training_replace_those_of_the_files(
    tmp_path: Path, names: str, rules: WordPieceRules, model_type: str
) -> None:
    for number, others in enumerate((rules, WordPieceRules.of(not rules.lower_case))):
        given = source(tmp_path / f"given{number}", names, others)
        info = load_tokenizer_info(given, *rules)
        (out := tmp_path / f"out{number}").mkdir()
        write_tokenizer(out, info.files, 64, rules)
        assert in_transformers(out, model_type) == trained_ids(info)
        # Read back without being told the rules, it is the same tokenizer.
        again = load_tokenizer_info(out)
        assert again == info and again.fingerprint == info.fingerprint
        (twice := tmp_path / f"twice{number}").mkdir()
        write_tokenizer(twice, tokenizer_files(out), 64, rules)
        for name in tokenizer_files(out):
            assert (twice / name).read_bytes() == (out / name).read_bytes()


def test_the_cases_differ(tmp_path: Path) -> None:
    info = load_tokenizer_info(source(tmp_path / "v", "vocab.txt", CASES[0]))
    found = {str(trained_ids(load_tokenizer_info(info.main_file, *rules))) for rules in CASES}
    assert len(found) == len(CASES)


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_a_class_that_ignores_the_configs_rules_is_read_as_in_transformers(
    tmp_path: Path, kind: str
) -> None:
    """As in folders whose tokenizer_config.json was edited."""
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    values = {"tokenizer_class": kind, "do_lower_case": True, **names}
    given = source(tmp_path / "given", "vocab.txt tokenizer.json config", CASES[1], **values)
    assert in_transformers(given, "bert") == trained_ids(load_tokenizer_info(given))


def test_other_settings_of_the_files_are_kept(tmp_path: Path) -> None:
    extra = {"model_max_length": 99, "mask_token": "<m>", "note": "é", "auto_map": {"x": "own.T"}}
    given = source(tmp_path / "given", "vocab.txt tokenizer.json config", CASES[0], **extra)
    content = json.loads((given / "tokenizer.json").read_text("utf-8"))
    content["post_processor"] = None  # without it, transformers' generic class adds no [CLS]
    (given / "tokenizer.json").write_text(json.dumps(content))
    (out := tmp_path / "out").mkdir()
    write_tokenizer(out, tokenizer_files(given), 64, CASES[1])
    values = json.loads((out / "tokenizer_config.json").read_text("utf-8"))
    assert (values["model_max_length"], values["note"]) == (99, "é")
    assert values["mask_token"] == "[MASK]" and "auto_map" not in values
    for model_type in ("bert", "modernbert"):
        assert in_transformers(out, model_type) == trained_ids(load_tokenizer_info(given, False))


def roberta(folder: Path) -> Path:
    """A byte-level BPE with RoBERTa's class and template, which differ from the trained rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(models.BPE({t: i for i, t in enumerate([*names, *alphabet])}, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    built.add_special_tokens(names)
    folder.mkdir()
    built.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 99}
    config |= dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), names))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_pairs_of_another_model_have_the_rows_of_training(tmp_path: Path, model_type: str) -> None:
    from transformers import AutoTokenizer

    info = load_tokenizer_info(roberta(tmp_path / "given"))
    (out := tmp_path / "out").mkdir()
    write_tokenizer(out, info.files, 64, info.rules)
    (out / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(out)
    a, b = (JsonTokenizer(info.main_file).ids(text) for text in ("Café 東", "b"))
    cls, sep = info.special_ids["cls"], info.special_ids["sep"]
    row = loaded("Café 東", "b")
    assert row["input_ids"] == [cls, *a, sep, *b, sep]
    assert row["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert loaded.model_max_length == 99 and loaded.mask_token == "<mask>"
    assert load_tokenizer_info(out).fingerprint == info.fingerprint


def test_data_of_other_rules_than_those_of_the_model_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cased BERT that continues on lower-cased text would not complain on its own."""
    from bertds.pretrained.evaluate import _check_vocabulary
    from bertds.pretrained.load import load_pretrained
    from bertds.training.starting_point import _check_vocabulary_file
    from tests.support.bert_folder import VOCABULARY, write_bert

    model = write_bert(tmp_path / "model")
    rules = CASES[1].to_transformers(24)
    (model / "tokenizer_config.json").write_text(json.dumps(rules))
    warnings: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: warnings.append(text % values))
    for lower_case, count in ((False, 0), (True, 2)):
        data = load_tokenizer_info(model, lower_case)
        _check_vocabulary(load_pretrained(model), SimpleNamespace(tokenizer=data))
        _check_vocabulary_file(model, data)
        assert len(warnings) == count
    assert all("its tokenizer is cased, but that of the data is uncased" in w for w in warnings)
    assert data.vocab_size == len(VOCABULARY)
