"""BLiMP's scorer: transformers' own numbers, one mask at a time, and what is done with ties."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bertds.commands.evaluate import main
from bertds.commands.runs.report import main as report
from bertds.errors import DataError
from bertds.model.build import build_model
from bertds.pretrained import blimp
from bertds.pretrained.blimp import evaluate_blimp, pseudo_log_likelihoods, read_pairs
from bertds.pretrained.load import load_pretrained

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the a cat cats dog dogs see sees sleep sleep ##s chase ##d it him ##self her ? . no ever"
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}

# Made by hand in BLiMP's form: (file, field, phenomenon, good, bad).
PAIRS = [
    ("number_1", "morphology", "agreement", "The cat sees the dogs.", "The cat see the dogs."),
    ("number_1", "morphology", "agreement", "The dogs sleep.", "The dogs sleeps."),
    ("number_1", "morphology", "agreement", "A dog chased it.", "A dog chase it."),
    ("anaphor_1", "syntax", "binding", "The cat sees himself.", "The cat sees him himself ever."),
    ("anaphor_1", "syntax", "binding", "No dog sees herself.", "No dog sees zebra."),
    ("npi_1", "syntax/semantics", "licensing", "No cats ever sleep.", "The cats ever sleep."),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pairs as files."""
    path = tmp_path_factory.mktemp("pairs")
    for name in {pair[0] for pair in PAIRS}:
        lines = [
            {
                "sentence_good": good,
                "sentence_bad": bad,
                "field": field,
                "UID": name,
                "linguistics_term": term,
                "pairID": str(number),
            }
            for number, (uid, field, term, good, bad) in enumerate(PAIRS)
            if uid == name
        ]
        text = "\n".join(json.dumps(line) for line in lines) + "\n"
        (path / f"{name}.jsonl").write_text(text)
    return path


@pytest.fixture(scope="module", params=["bert", "modern"])
def model_folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random transformers model with its tokenizer."""
    path = tmp_path_factory.mktemp(request.param)
    words = [*SPECIAL, *dict.fromkeys(WORDS.split())]
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(str(path / "vocab.txt"), do_lower_case=True).save_pretrained(
        path
    )
    torch.manual_seed(5)
    if request.param == "bert":
        model: Any = transformers.BertForMaskedLM(
            transformers.BertConfig(vocab_size=len(words), intermediate_size=48, **SIZES)
        )
    else:
        model = transformers.ModernBertForMaskedLM(
            transformers.ModernBertConfig(
                vocab_size=len(words),
                intermediate_size=48,
                local_attention=4,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=None,
                cls_token_id=2,
                sep_token_id=3,
                **SIZES,
            )
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3)
    model.save_pretrained(path)
    return path


def one_mask_at_a_time(folder: Path, text: str) -> float:
    """What the sum means, in the plainest way that transformers offers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    total = 0.0
    for position in range(1, ids.shape[1] - 1):
        masked = ids.clone()
        masked[0, position] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=masked).logits
        total += float(logits[0, position].log_softmax(-1)[ids[0, position]])
    return total


@pytest.mark.parametrize("tokens_per_pass", [9, 16_384])
def test_sums_are_transformers(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, tokens_per_pass: int
) -> None:
    monkeypatch.setattr(blimp, "TOKENS_PER_PASS", tokens_per_pass)
    trained = load_pretrained(model_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    texts = [text for pair in PAIRS for text in pair[3:]]
    found = pseudo_log_likelihoods(trained.model, tokenizer, texts)
    wanted = [one_mask_at_a_time(model_folder, text) for text in texts]
    assert found == pytest.approx(wanted, abs=1e-4)
    assert len({round(value, 3) for value in wanted}) == len(set(texts))  # nothing is nearly equal


def test_scores_by_paradigm_field_and_overall(
    model_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(model_folder), "--blimp", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    right = {
        (uid, good): one_mask_at_a_time(model_folder, good) > one_mask_at_a_time(model_folder, bad)
        for uid, _, _, good, bad in PAIRS
    }
    wanted = {}
    for name in {pair[0] for pair in PAIRS}:
        hits = [hit for (uid, _), hit in right.items() if uid == name]
        wanted[name] = 100 * sum(hits) / len(hits)
    assert found["paradigms"] == pytest.approx(wanted, abs=1e-3)
    assert found["fields"] == pytest.approx(
        {
            "morphology": wanted["number_1"],
            "syntax": wanted["anaphor_1"],
            "syntax_semantics": wanted["npi_1"],
        },
        abs=1e-3,
    )
    assert found["overall"] == pytest.approx(sum(wanted.values()) / 3, abs=1e-3)
    assert found["pairs"] == 6
    assert main([str(model_folder), "--blimp", str(folder), "--limit", "1"]) == 0
    text = capsys.readouterr().out
    assert "3 pairs" in text and "syntax_semantics" in text and "anaphor_1" in text
    assert "not comparable: 3 paradigms here, 67 in the official set" in text


def test_a_tie_is_wrong(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_pretrained(model_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    same = [
        blimp.Pair("The cat sees.", "the CAT sees.", "p", "syntax", "t"),  # equal once lower-cased
        blimp.Pair("A dog.", "A dog.", "p", "syntax", "t"),
    ]
    copies: list[object] = []
    score = blimp.score_sentences
    monkeypatch.setattr(blimp, "score_sentences", lambda *a: (copies.extend(a[1]), score(*a))[1])
    assert evaluate_blimp(trained.model, tokenizer, same)["overall"] == 0.0
    # The same tokens in another pass could differ by rounding.
    assert len(copies) == 4 + 3  # the cat sees . + a dog .


def test_a_runs_scores_are_kept_for_its_report(
    command: Callable[..., list[str]],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from bertds.report.run_view import read_run
    from bertds.train import entry

    assert entry(command("run", "schedule.total_steps=1", "schedule.warmup_steps=0")) == 0
    assert main([str(tmp_path / "run"), "--blimp", str(folder)]) == 0
    kept = read_run(tmp_path / "run").blimp
    assert kept["step"] == 1 and kept["pairs"] == 6
    assert report([str(tmp_path / "run"), "--out", str(tmp_path / "page")]) == 0
    html = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "npi 1" in html and f"{kept['overall']:.1f}" in html


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "contains no *.jsonl files"),
        ("a.jsonl", "\n", "contain no pairs"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", '\n{"sentence_good": "x"}', "line 2 has no text under sentence_bad"),
        ("a.jsonl", '["x"]', "line 1 has no text under sentence_good"),
    ],
)
def test_files_of_another_form_are_named(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_pairs(tmp_path)
    assert message in str(caught.value)


def test_a_sentence_too_long_or_empty_is_named(model_folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    model = load_pretrained(model_folder).model
    object.__setattr__(model, "config", type(model.config)(max_position_embeddings=4))
    with pytest.raises(DataError, match="6 tokens, but the model reads at most 4"):
        pseudo_log_likelihoods(model, tokenizer, ["The cat sees it"])
    with pytest.raises(DataError, match="returns no tokens"):
        pseudo_log_likelihoods(model, tokenizer, [" "])


def test_a_model_that_cannot_be_scored_is_refused(model_folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    model = load_pretrained(model_folder).model
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(DataError, match="outputs of the model are not finite"):
        pseudo_log_likelihoods(model, tokenizer, ["The cat sees it"])
    tokenizer.mask_token = None
    with pytest.raises(DataError, match="has no mask token"):
        pseudo_log_likelihoods(model, tokenizer, ["The cat sees it"])


@pytest.mark.slow
def test_random_weights_score_like_guessing(shared_data: Path, tmp_path: Path) -> None:
    """The official pairs: half of them right on average, over small models of both styles."""
    import tarfile

    from bertds.config.recipe import ModelConfig

    with tarfile.open(shared_data / "blimp" / "blimp-data.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    pairs = read_pairs(tmp_path, 10)
    assert len(pairs) == 670 and len({pair.paradigm for pair in pairs}) == 67
    assert {pair.field for pair in pairs} == {
        "morphology",
        "semantics",
        "syntax",
        "syntax_semantics",
    }
    # Every word per token of its own: a small vocabulary, and so ten times less to compute.
    texts = " ".join(f"{pair.good} {pair.bad}" for pair in pairs).lower()
    words = [*SPECIAL, *sorted(set(re.findall(r"\w+|[^\w\s]", texts)))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"), do_lower_case=True)
    scores = []
    for seed in range(24):
        torch.manual_seed(seed)
        config = ModelConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            next_sentence=False,
            style=("bert", "modern")[seed % 2],
        )
        model = build_model(config, len(words)).eval()
        scores.append(evaluate_blimp(model, tokenizer, pairs)["overall"])
    assert sum(scores) / len(scores) == pytest.approx(50.0, abs=1.0), scores
