"""Runs of the modern encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from bertds.monitor.run_files import read_metrics
from bertds.train import entry
from tests.support.fork_server import ForkServer
from tests.support.read_runs import assert_same_weights, losses, weights

MODERN = (
    "model.style=modern",
    "model.next_sentence=false",
    "data.pairs=none",
    "model.num_hidden_layers=3",
    "model.global_attn_every_n_layers=2",
    "model.local_attention=8",
)


def test_a_modern_encoder_resumes_bit_equal_and_is_exported(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    from bertds.pretrained.export import export

    extra = [
        *MODERN,
        "model.hidden_dropout_prob=0.1",
        "model.attention_probs_dropout_prob=0.1",
        "model.activation_checkpointing=full",
        "schedule.total_steps=3",
    ]
    assert entry(command("whole", *extra)) == 0
    assert [entry(command("broken", *extra, "run.max_hours=0")) for _ in range(3)][-1] == 0
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")
    # What transformers loads is what was trained; and a run may start from it.
    theirs, info = transformers.ModernBertForMaskedLM.from_pretrained(
        export(tmp_path / "whole", tmp_path / "hf"), output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    trained = weights(tmp_path / "whole")["model.layers.2.attn.Wqkv.weight"]
    assert theirs.model.layers[2].attn.Wqkv.weight.flatten().equal(trained.flatten())
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "\n- modernbert\n" in card and "A ModernBERT of 3 layers" in card
    more = [*MODERN, f"init.from={tmp_path / 'hf'}"]
    assert entry(command("more", *more, "schedule.total_steps=1", "schedule.warmup_steps=0")) == 0
    assert losses(tmp_path / "more")[0] < losses(tmp_path / "whole")[0]
    # Longer rows may follow shorter ones; another window may not.
    assert (
        entry(
            command(
                "longer",
                *more,
                "model.max_position_embeddings=128",
                "schedule.total_steps=1",
                "schedule.warmup_steps=0",
            )
        )
        == 0
    )
    assert entry(command("other", *more, "model.local_attention=4")) == 2
    assert entry(command("bert", "model.next_sentence=false", f"init.from={tmp_path / 'hf'}")) == 2


@pytest.mark.slow
def test_a_modern_encoder_trains_alike_at_every_stage(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    key = "deepspeed.zero_optimization.stage"
    lamb = [*MODERN, "deepspeed.optimizer.type=Lamb"]
    assert entry(command("one", *lamb)) == 0
    for stage in (1, 2, 3):
        two = command(f"two{stage}", *lamb, f"{key}={stage}")
        assert fork_server.run(two, 2, output=tmp_path)[0] == 0
    prompts = read_metrics(tmp_path / "one" / "metrics.jsonl").validation[-1]["prompts"]
    for stage in (1, 2, 3):
        two = read_metrics(tmp_path / f"two{stage}" / "metrics.jsonl").validation[-1]
        assert two["prompts"] == prompts
        assert losses(tmp_path / f"two{stage}") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_uses_that_a_modern_encoder_refuses(
    command: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert entry(command("run", *MODERN, "run.cuda_graphs=true", "data.pack_tokens=400")) == 2
    assert "run.cuda_graphs=true does not support model.style=modern" in capfd.readouterr().err
