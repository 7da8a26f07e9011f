from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from bertds.pretrained.load import PretrainedModel
from bertds.pretrained.model_card import _data, _score_words, _words


def with_data(path: str) -> PretrainedModel:
    facts = {"kind": "token shards", "path": path, "tokenizer_fingerprint": "ab" * 32, "rows": 1200}
    manifest = {"data": facts, "recipe": {"data": {"path": path}}}
    return cast("PretrainedModel", SimpleNamespace(manifest=manifest))


def test_sources_and_licences_come_from_the_prepared_folder(tmp_path: Path) -> None:
    sources = [
        {
            "name": "wiki",
            "licence": "CC BY-SA (Wikipedia | contributors)",
            "documents_written": 12345,
        },
        {"name": "text", "licence": "", "documents_written": 2},
    ]
    (tmp_path / "manifest.json").write_text(json.dumps({"sources": sources}))
    card = _data(with_data(str(tmp_path)))
    assert "| wiki | CC BY-SA (Wikipedia / contributors) | 12,345 |" in card
    assert "| text | not stated | 2 |" in card and "| rows | 1,200 |" in card
    assert str(tmp_path) not in card and "abab" not in card


def test_a_prepared_folder_that_is_gone_leaves_the_facts(tmp_path: Path) -> None:
    card = _data(with_data(str(tmp_path / "gone")))
    assert "licence of the text" not in card and "| kind | token shards |" in card


def test_scores_and_settings_in_words() -> None:
    score: dict[str, Any] = {"step": 5000, "mlm_loss": 2.0, "mlm_accuracy": 0.6123}
    words = _score_words(score)
    assert "61.2% of the masked tokens are predicted correctly" in words
    assert "perplexity of 7.4" in words
    assert "nsp" not in words and "bertds evaluate" in _score_words({})
    assert _words({"lr": 0.001, "betas": [0.9, 0.98], "x": None}) == "lr 0.001, betas 0.9 and 0.98"
