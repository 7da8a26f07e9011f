"""Masked tokens weighed by the frequency of their words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertds.config.load import load_config
from bertds.data.loader import open_source
from bertds.errors import ConfigError
from bertds.model.build import build_model
from bertds.train import entry
from bertds.training.word_weights import use_word_weights, word_weights
from tests.support.fork_server import ForkServer
from tests.support.read_runs import assert_same_state, losses, newest

POWER = "data.rare_token_power=0.5"


def test_weights_by_hand() -> None:
    counts = np.array([16, 4, 0, 4])  # the word that is not there counts as once
    weights = word_weights(counts, 0.5)
    assert weights / weights[0] == pytest.approx([1, 2, 4, 2])
    shares = np.array([16, 4, 1, 4]) / 25
    assert float((shares * weights).sum()) == pytest.approx(1)
    assert word_weights(counts, 0.0) == pytest.approx([1, 1, 1, 1])
    assert weights.dtype == np.float32


@pytest.mark.parametrize("style", ["bert", "modern"])
def test_the_model_uses_the_weights_of_the_training_text(style: str, tiny_data: Path) -> None:
    model = {"style": style, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model |= {"intermediate_size": 16, "next_sentence": False}
    data = {"path": str(tiny_data), "pairs": "none", "rare_token_power": 0.5}
    config = load_config({"model": model, "data": data})
    source = open_source(config.data, 1)
    built: Any = build_model(config.model, source.tokenizer.vocab_size)
    use_word_weights(built, config, source)
    decoder = built.decoder if style == "modern" else built.cls.predictions.decoder
    counts = source.token_counts()
    assert counts is not None
    assert torch.equal(decoder.word_weights_K, torch.from_numpy(word_weights(counts, 0.5)))
    assert not any("word_weights" in name for name in built.state_dict())

    source.token_counts = lambda: None  # type: ignore[method-assign]
    with pytest.raises(
        ConfigError, match=r"rare_token_power=0\.5: these files do not contain word frequencies"
    ):
        use_word_weights(built, config, source)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_on_any_number_of_ranks(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert entry(command("whole", POWER)) == 0
    codes = [entry(command("broken", POWER, "run.max_hours=0")) for _ in range(6)]
    assert codes[-2:] == [75, 0]
    assert_same_state(tmp_path / "broken", tmp_path / "whole")
    stage = "deepspeed.zero_optimization.stage=3"
    assert fork_server.run(command("two", POWER, stage), 2, output=tmp_path)[0] == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    # The weights do something: the first loss is the same, the first update is not.
    assert entry(command("plain")) == 0
    assert losses(tmp_path / "plain")[0] == losses(tmp_path / "whole")[0]
    name = "cls.predictions.transform.dense.weight"
    plain, weighed = (dict(newest(tmp_path / run).weights()) for run in ("plain", "whole"))
    assert not torch.equal(plain[name], weighed[name])
