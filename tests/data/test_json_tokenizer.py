"""Byte-level BPE and unigram on the whole process: prepare, train, export, predict, fine-tune."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bertds.cli import main as bertds
from bertds.config.recipe import DataConfig
from bertds.data.loader import open_source
from bertds.data.tokenizer_json import JsonTokenizer
from bertds.data.vocabulary import load_tokenizer_info
from bertds.errors import DataError
from bertds.pretrained.load import load_pretrained

SENTENCES = [
    "The river runs to the sea, and it isn't slow.",
    "It's the best of times for all of the boats there.",
    "Another document tells of cats, dogs and birds that sing.",
    "She said nothing at all about the town for three years.",
    "A naïve café in 東京 opens at nine; it's closed by five!",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
RECIPE = Path("bertds/recipes/tiny_cpu_phase1.yaml")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a byte-level BPE as RoBERTa's, whose special tokens are not BERT's."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.train_from_iterator(
        SENTENCES * 4,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    folder = tmp_path_factory.mktemp("bpe") / "tokenizer"
    folder.mkdir()
    built.save(str(folder / "tokenizer.json"))
    names = dict(zip(("cls", "pad", "sep", "unk", "mask"), SPECIAL))
    config = {f"{name}_token": token for name, token in names.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def data(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe-data")
    texts = [
        " ".join(SENTENCES[(i + j) % len(SENTENCES)] for j in range(4)) + f" It was day {i}."
        for i in range(40)
    ]
    (folder / "t.txt").write_text("\n\n".join(texts), encoding="utf-8")
    given = ["prep", "--text", str(folder / "t.txt"), "--out", str(folder / "out"), "--vocab"]
    assert bertds([*given, str(tokenizer), "--validation-fraction", "0.1", "--workers", "1"]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped recipe with its own model, cut to a few steps, with whole-word masks."""
    folder = tmp_path_factory.mktemp("bpe-run") / "run"
    command = [
        "train",
        "--config",
        str(RECIPE),
        "--set",
        f"run.dir={folder}",
        f"data.path={data}",
        "schedule.total_steps=3",
        "validation.every_steps=3",
        "checkpoint.every_steps=3",
        "data.whole_word_masking=true",
        "log.progress=none",
        "deepspeed.train_batch_size=8",
        "deepspeed.train_micro_batch_size_per_gpu=8",
        "run.next_recipe=",
    ]
    assert bertds(command) == 0
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    assert bertds(["export", str(run), "--out", str(run.parent / "model")]) == 0
    return run.parent / "model"


def rows(data: Path, **settings: Any) -> tuple[Any, Any]:
    config = DataConfig(
        path=str(data), sequence_length=64, max_predictions_per_sequence=10, **settings
    )
    source = open_source(config, 7)
    count = int(source.first_samples(0)[-1])
    return source, source.open_block(0, list(range(source.shards))).gather(np.arange(count))


def test_rows_are_built_with_the_files_own_tokens_and_words(data: Path, tokenizer: Path) -> None:
    theirs = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    ids = {token: theirs.token_to_id(token) for token in SPECIAL}
    source, flat = rows(data, whole_word_masking=True, pairs="none")
    assert flat.rows >= 30
    masked_words = 0
    for number in range(flat.rows):
        a, b = flat.row_offsets[number : number + 2]
        first, last = flat.mask_offsets[number : number + 2]
        row = flat.input_ids[a:b].copy()
        places = flat.masked_positions[first:last] - a
        assert ids["<pad>"] not in row[[0, -1]]
        assert (row[0], row[-1]) == (ids["<s>"], ids["</s>"])
        assert ids["<mask>"] in flat.input_ids or not len(places)
        row[places] = flat.masked_ids[first:last]
        # The row is text again, and tokenizers says which of its tokens make a word.
        text = theirs.decode(row[1:-1].tolist())
        encoding = theirs.encode(text, add_special_tokens=False)
        if encoding.ids != row[1:-1].tolist():
            continue  # it was cut within a word
        words = np.array(encoding.word_ids)
        chosen = np.zeros(len(words), bool)
        chosen[places - 1] = True
        for word in set(words[chosen].tolist()):
            assert chosen[words == word].all(), (text, encoding.tokens, places)
            masked_words += (words == word).sum() > 1
    assert masked_words > 10  # words of several tokens were among them
    info = load_tokenizer_info(data / "tokenizer")
    assert source.tokenizer == info and info.special_ids["mask"] == ids["<mask>"]


@pytest.mark.slow
def test_the_export_has_the_same_ids_and_logits_in_transformers(
    run: Path, model: Path, tokenizer: Path
) -> None:
    from transformers import AutoTokenizer, BertForPreTraining

    theirs, info = BertForPreTraining.from_pretrained(model, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded = AutoTokenizer.from_pretrained(model)
    own = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    for text in SENTENCES:
        ids = own.encode(text, add_special_tokens=False).ids
        assert loaded(text)["input_ids"] == [0, *ids, 2]
    config = json.loads((model / "config.json").read_text())
    assert config["pad_token_id"] == 1 == loaded.pad_token_id
    inputs = loaded("The river runs to the <mask>.", "It's slow.", return_tensors="pt")
    assert inputs["token_type_ids"][0, -1] == 1
    tokens = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        expected = theirs.eval()(**inputs)
        ours = load_pretrained(run).model
        prediction, relation = ours.logits(
            input_ids=inputs["input_ids"][0],
            segment_ids=inputs["token_type_ids"][0],
            position_ids=torch.arange(tokens),
            cu_seqlens=torch.tensor([0, tokens], dtype=torch.int32),
            max_seqlen=tokens,
            positions=torch.arange(tokens),
        )
    vocab_size = len(loaded)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(
        prediction[:, :vocab_size], expected.prediction_logits[0, :, :vocab_size], **close
    )
    torch.testing.assert_close(relation, expected.seq_relationship_logits, **close)


@pytest.mark.slow
def test_commands_work_on_it(
    run: Path, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_text("The river runs to the <mask>.\n")
    capsys.readouterr()
    texts = str(tmp_path / "in.txt")
    command = ["predict", "--model", str(model), "--input", texts, "--task", "fill-mask"]
    assert bertds(command) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[0])
    assert len(answer["masks"]) == 1
    assert not any("\u0120" in word for word, _ in answer["masks"][0])
    assert bertds(["evaluate", str(model), "--data", str(data)]) == 0
    assert "tokens_per_word" in capsys.readouterr().out
    assert bertds(["inspect", str(run), "--step", "1", "--limit", "1"]) == 0
    assert "<s>" in capsys.readouterr().out
    assert bertds(["prep", "show", str(data), "-n", "1"]) == 0
    shown = capsys.readouterr().out
    assert "<s>" in shown and "\u0120" not in shown
    # A conversion of the run, or of the export, has the files of the export.
    for source in (run, model):
        out = tmp_path / f"converted-{source.name}"
        assert bertds(["convert", str(source), str(out), "--to", "hf"]) == 0
        differing = {"README.md", "bertds_export.json"}
        names = sorted(path.name for path in model.iterdir() if path.name not in differing)
        assert len(names) == 4
        for name in names:
            assert (out / name).read_bytes() == (model / name).read_bytes(), name
    assert bertds(["convert", str(model), str(tmp_path / "dle"), "--to", "dle"]) == 2
    assert "the tokenizer is bpe" in capsys.readouterr().err
    (tmp_path / "w.txt").write_text("word\n")
    arguments = ["extend", str(model), str(tmp_path / "more"), "--words", str(tmp_path / "w.txt")]
    assert bertds(arguments) == 2
    assert "only WordPiece can be extended" in capsys.readouterr().err


@pytest.mark.slow
def test_separate_words_have_the_same_tokens_as_in_a_text(model: Path) -> None:
    from transformers import AutoTokenizer

    from bertds.finetune.features import encode_sentences
    from bertds.finetune.records import Sentence

    loaded = AutoTokenizer.from_pretrained(model)
    words = ["The", "river", "runs", "to", "the", "sea"]
    sentence = Sentence(words=words, tags=["O"] * 6, line=1)
    (example,), (places,) = encode_sentences(loaded, [sentence], ["O"], 64)
    assert example.input_ids == loaded(" ".join(words))["input_ids"]
    assert [word for word, _ in places.places] == list(range(6))


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c"]


def wordpiece() -> dict[str, Any]:
    """A tokenizer.json that does what BERT's own tokenizer does."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": word,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, word in enumerate(WORDS[:5])
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: number for number, word in enumerate(WORDS)},
        },
    }


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            "model vocab a",
            2**31 - 1,
            "the largest id is 2,147,483,647, but there are only 8 tokens",
        ),
        (
            "added_tokens 0 id",
            2**31,
            "the largest id is 2,147,483,648, but there are only 8 tokens",
        ),
        ("model vocab a", 6, "'a' and 'b' have the same id 6"),
        ("model vocab a", -1, "the id of 'a' is -1; must be 0 or more"),
        ("model vocab a", "5", "the id of 'a' is '5'; must be 0 or more"),
        ("model vocab a", float("nan"), "the id of 'a' is nan; must be 0 or more"),
        ("model vocab a", None, "the id of 'a' is None"),
        ("model vocab", [1], r"model.vocab\[0\] is not a token with its score"),
        ("model vocab", 5, "model.vocab is neither an object nor a list"),
        ("model", [1], "model is not an object"),
        ("normalizer", "x", "normalizer is not an object"),
        ("normalizer lowercase", "x", "normalizer: do_lower_case is 'x'; must be true or false"),
        ("added_tokens", 5, "added_tokens is not a list"),
        ("added_tokens", {"content": "x", "id": 8}, "added_tokens is not a list"),
        ("added_tokens", [{"special": True}], r"added_tokens\[0\] is not a token"),
        (
            "padding",
            {"strategy": {"Fixed": 10**12}, "pad_id": 0, "pad_token": "[PAD]"},
            "pads to 1000000000000 tokens; allowed: at most 1,048,576",
        ),
        ("model", "[" * 5000, "nested too deeply"),
    ],
)
def test_an_inconsistent_tokenizer_json_is_refused(
    tmp_path: Path, place: str, value: Any, message: str
) -> None:
    content = node = wordpiece()
    *path, last = (int(key) if key.isdigit() else key for key in place.split())
    for key in path:
        node = node[key]  # type: ignore[index]
    node[last] = value  # type: ignore[index]
    text = json.dumps(content)
    if message == "nested too deeply":
        text = text.replace(f'"{value}"', value)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load_tokenizer_info(tmp_path)


def test_a_tokenizer_json_without_added_tokens_is_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({**wordpiece(), "added_tokens": None}))
    assert load_tokenizer_info(tmp_path).vocab_size == len(WORDS)


def test_a_model_whose_unknown_token_does_not_exist_is_named(tmp_path: Path) -> None:
    content = wordpiece()
    content["model"]["unk_token"] = "[NONE]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"a text cannot be tokenized .*Missing"):
        JsonTokenizer(tmp_path / "tokenizer.json").encode(["a", "?"])
    content["model"]["vocab"] = {word.replace("a", "x"): n for n, word in enumerate(WORDS)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"a text cannot be tokenized .*Missing"):
        load_tokenizer_info(tmp_path)
