"""LAMB's state goes through DeepSpeed's universal checkpoints.

Training does not use them: its own checkpoints fit any number of processes and any stage. Whoever
drives DeepSpeed with this optimizer by hand may. At stage 0 DeepSpeed has none: its converter
wants the optimizer files that only ZeRO writes.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from bertds.engine.deepspeed_engine import Engine
from tests.support.engine_worker import run
from tests.support.fork_server import ForkServer
from tests.support.toy_engine import Toy, distance, gather_state, make_engine, same, train, values


def convert(folder: Path, tag: str) -> None:
    """Run DeepSpeed's converter, as its command line would, in this process."""
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        Namespace(
            input_folder=str(folder / tag),
            output_folder=str(folder / f"{tag}_universal"),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )


def load_universal(json_values: dict, folder: Path, tag: str) -> Engine:
    engine = make_engine(json_values, Toy(seed=5))
    # Our JSON refuses the "checkpoint" section, where DeepSpeed is given this.
    engine._engine._config.load_universal_checkpoint = True
    loaded, _ = engine._engine.load_checkpoint(str(folder), tag=f"{tag}_universal")
    assert loaded is not None
    return engine


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_universal_checkpoint_continues_bit_for_bit(
    stage: int, precision: str, tmp_path: Path
) -> None:
    json_values = values(stage, precision, optimizer="Lamb")
    json_values["train_micro_batch_size_per_gpu"] = 12
    engine = make_engine(json_values)
    train(engine, 0, 3)
    engine._engine.save_checkpoint(str(tmp_path), tag="three")
    middle = gather_state(engine)
    losses, _ = train(engine, 3, 6)
    end = gather_state(engine)
    engine.close()

    convert(tmp_path, "three")
    again = load_universal(json_values, tmp_path, "three")
    assert again.optimizer_steps() == 3
    assert same(gather_state(again), middle)
    assert train(again, 3, 6)[0] == losses
    assert same(gather_state(again), end)
    again.close()


@pytest.mark.slow
def test_a_universal_checkpoint_of_two_ranks_continues_on_one(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    cases = [
        {
            "name": f"stage{stage}",
            "values": values(stage, optimizer="Lamb"),
            "last": 6,
            "deepspeed_save": [3, str(tmp_path / f"stage{stage}")],
        }
        for stage in (1, 2, 3)
    ]
    found = run(fork_server, 2, cases, tmp_path)
    for stage in (1, 2, 3):
        convert(tmp_path / f"stage{stage}", "saved")
        engine = load_universal(cases[stage - 1]["values"], tmp_path / f"stage{stage}", "saved")
        assert engine.optimizer_steps() == 3
        losses, _ = train(engine, 3, 6)
        want = found[f"stage{stage}"]
        assert losses == pytest.approx(want["losses"][3:], rel=1e-6)
        assert distance(gather_state(engine), want["state"]) < 1e-6
        engine.close()
