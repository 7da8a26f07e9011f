"""The fixed prompts: what is asked, and that the answers are the model's own."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bertds.config.load import load_config
from bertds.data.loader import open_source
from bertds.data.vocabulary import load_tokenizer_info
from bertds.errors import DataError
from bertds.model.build import build_model
from bertds.report.page import _predictions
from bertds.training.prompts import Prompts


@pytest.fixture(params=["bert", "modern"])
def config(request: Any, tiny_data: Path) -> Any:
    return load_config(
        {
            "model": {
                "style": request.param,
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "next_sentence": False,
            },
            "data": {
                "path": str(tiny_data),
                "sequence_length": 32,
                "pairs": "none",
                "max_predictions_per_sequence": 5,
            },
        }
    )


def test_predictions_are_those_of_the_logits(config: Any) -> None:
    source = open_source(config.data, config.run.seed, split="validation")
    prompts = Prompts.of(source, config)
    again = Prompts.of(source, config)
    assert prompts is not None and again is not None
    assert prompts.texts == again.texts and prompts.answers == again.answers
    mask = source.tokenizer.special_ids["mask"]
    batch = prompts.batch
    assert (batch.input_ids == mask).sum() == len(prompts.texts) == batch.masked == 5
    assert batch.input_ids[batch.masked_lm_positions].eq(mask).all()
    torch.manual_seed(1)
    model = build_model(config.model, source.tokenizer.vocab_size).eval()
    output = model(**batch.model_inputs(), predict=True)
    wanted = ("input_ids", "segment_ids", "position_ids", "cu_seqlens", "max_seqlen")
    inputs = {key: value for key, value in batch.model_inputs().items() if key in wanted}
    logits, _ = model.logits(**inputs, positions=batch.masked_lm_positions)
    assert output.predictions.equal(logits.argmax(1))
    assert float(output.mlm_loss_sum) == 0.0
    pieces = source.tokenizer.vocabulary()
    lines = prompts.lines(output.predictions)
    assert [line["predicted"] for line in lines] == [pieces[w] for w in logits.argmax(1).tolist()]
    assert [line["answer"] for line in lines] == [pieces[w] for w in batch.masked_lm_ids.tolist()]


def test_the_report_shows_how_they_change() -> None:
    class Run:
        title = "r"
        validation = [
            {"step": step, "prompts": [{"text": "a [MASK] b", "answer": "cat", "predicted": word}]}
            for step, word in ((10, "the"), (20, "dog"), (30, "cat"))
        ]

    [(title, table)] = _predictions([Run()])  # type: ignore[list-item]
    assert title == "r" and table.head[2:] == ["step 10", "step 20", "step 30"]
    assert table.rows == [["a [MASK] b", "cat", "the", "dog", "cat \N{CHECK MARK}"]]
    assert _predictions([]) == []


def test_prompts_of_a_file_are_asked_as_they_are_written(config: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.tsv"
    file.write_text("w00 w01 [MASK] w03\tw02\n\n[MASK] w11\tw10\n")
    validation = dataclasses.replace(config.validation, prompts=str(file))
    config = dataclasses.replace(config, validation=validation)
    source = open_source(config.data, config.run.seed, split="validation")
    prompts = Prompts.of(source, config)
    assert prompts is not None
    assert prompts.texts == ["w00 w01 [MASK] w03", "[MASK] w11"]
    assert prompts.answers == ["w02", "w10"]
    batch = prompts.batch
    assert batch.input_ids.tolist() == [2, 5, 6, 4, 8, 3, 2, 4, 16, 3]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert batch.masked_lm_positions.tolist() == [3, 7] and batch.masked_lm_ids.tolist() == [7, 15]
    assert batch.cu_seqlens.tolist() == [0, 6, 10]
    model = build_model(config.model, source.tokenizer.vocab_size).eval()
    output = model(**batch.model_inputs(), predict=True)
    assert [line["answer"] for line in prompts.lines(output.predictions)] == ["w02", "w10"]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("w00 w01\tw02", "line 1: must be a text with one"),
        ("[MASK] [MASK]\tw02", "line 1: must be a text with one"),
        ("w00 [MASK]", "line 1: must be a text with one"),
        ("w00 [MASK]\tw01\nw00 [MASK]\tzebra", "line 2: the answer 'zebra' is not a single token"),
        ("w00 [MASK]\tw01 w02", "line 1: the answer 'w01 w02' is not a single token"),
        ("w00 " * 40 + "[MASK]\tw01", "line 1: 43 tokens, but data.sequence_length is 32"),
        ("\n", "contains no prompts"),
        (None, "cannot be read"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_refused_by_line(
    text: str | None, wrong: str, tiny_vocab: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.tsv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=re.escape(wrong)):
        Prompts.from_file(file, load_tokenizer_info(tiny_vocab), 32)
