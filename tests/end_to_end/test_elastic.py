"""A run that moves to other processes and stages: every step sees the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bertds.config.recipe import DataConfig
from bertds.config.row_settings import RowSettings
from bertds.data.formats.nvidia_hdf5 import write_instance_file
from bertds.data.formats.padded_columns import join_columns
from bertds.data.samples.flat_rows import build_instances
from bertds.data.sources.open import open_source
from tests.support.fork_server import ForkServer
from tests.support.read_runs import losses, newest, samples
from tests.support.tiny import write_tiny_data

SHAPE = RowSettings(sequence_length=32, max_predictions=5)


@pytest.fixture(scope="module")
def instance_folder(tmp_path_factory: pytest.TempPathFactory, tiny_vocab: Path) -> Iterator[Path]:
    """NVIDIA HDF5 files of 1, 7 and 1,000 rows."""
    prepared = write_tiny_data(tmp_path_factory.mktemp("large") / "data", tiny_vocab, (100, 300))
    data = DataConfig(path=str(prepared), sequence_length=32, max_predictions_per_sequence=5)
    source = open_source(data, 1)
    shards = [source.shard(number) for number in range(source.shards)]
    whole = join_columns(build_instances(shards, 0, SHAPE, 1, tokenizer=source.tokenizer))
    assert len(whole["input_ids"]) >= 1008
    folder = tmp_path_factory.mktemp("instances")
    for number, (begin, end) in enumerate([(0, 1), (1, 8), (8, 1008)]):
        write_instance_file(
            folder / f"tiny_training_{number}.hdf5",
            {name: rows[begin:end] for name, rows in whole.items()},
        )
    yield folder


def on_instances(arguments: list[str], folder: Path, vocab: Path) -> list[str]:
    kept = [argument for argument in arguments if not argument.startswith("data.path=")]
    return [*kept, f"data.path={folder}", f"data.vocab={vocab}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("door", "optimizer"), [("NVIDIA HDF5", "Lamb"), ("token shards", "AdamW")]
)
def test_2_1_3_2_processes_and_stages_1_2_0(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    instance_folder: Path,
    tiny_vocab: Path,
    door: str,
    optimizer: str,
) -> None:
    def build(run: str, *settings: str) -> list[str]:
        one = command(
            run,
            f"deepspeed.optimizer.type={optimizer}",
            "run.log_samples=true",
            "schedule.total_steps=16",
            "model.hidden_dropout_prob=0.0",
            *settings,
        )
        return on_instances(one, instance_folder, tiny_vocab) if door == "NVIDIA HDF5" else one

    code, text = fork_server.run(build("whole"), output=tmp_path)
    assert code == 0, text
    journey = [
        (2, 1, 2, {"stop": 4}),
        (1, 2, 6, {"stop": 8}),
        (3, 0, 1, {"stop": 12}),
        (2, 1, 3, {}),
    ]
    for world_size, stage, micro_batch, plan in journey:
        one = build(
            "moved",
            f"deepspeed.zero_optimization.stage={stage}",
            f"deepspeed.train_micro_batch_size_per_gpu={micro_batch}",
        )
        plans = dict.fromkeys(range(world_size), plan)
        code, text = fork_server.run(one, world_size, output=tmp_path, plans=plans)
        assert code == (75 if "stop" in plan else 0), text
        assert newest(tmp_path / "moved").manifest["world_size"] == world_size
        assert newest(tmp_path / "moved").manifest["step"] == plan.get("stop", 16)
    assert samples(tmp_path / "moved") == samples(tmp_path / "whole")
    used = {step: len(set(names)) for step, names in samples(tmp_path / "whole").items()}
    assert used == dict.fromkeys(range(1, 17), 12)
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)
    for (name, one), (_, two) in zip(
        newest(tmp_path / "moved").weights(), newest(tmp_path / "whole").weights(), strict=True
    ):
        # A key's bias has no true gradient: what it gets is the rounding, normalised.
        if "self.key.bias" not in name:
            assert float((one - two).abs().max()) < 1e-3, name


@pytest.mark.slow
def test_shards_of_1_7_and_1000_rows_end_the_epoch_on_3_processes(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    instance_folder: Path,
    tiny_vocab: Path,
) -> None:
    one = command(
        "run",
        "deepspeed.train_batch_size=36",
        "deepspeed.train_micro_batch_size_per_gpu=12",
        "schedule.total_steps=28",
        "run.log_samples=true",
        "deepspeed.zero_optimization.stage=2",
    )
    one = on_instances(one, instance_folder, tiny_vocab)
    code, text = fork_server.run(one, 3, output=tmp_path)
    assert code == 0, text
    used = [name for names in samples(tmp_path / "run").values() for name in names]
    assert sorted(used) == [(0, number) for number in range(1008)]
    state = newest(tmp_path / "run").manifest["state"]
    assert (state["epoch"], state["offset"]) == (1, 0)


@pytest.mark.slow
def test_balanced_and_packed_micro_batches_train_the_same(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Rows in other hands, on two processes and then on one, with fillers: equal to rounding."""
    common = ("run.log_samples=true", "schedule.total_steps=8")
    code, text = fork_server.run(command("plain", *common), output=tmp_path)
    assert code == 0, text
    balanced = (*common, "data.balance=tokens", "deepspeed.train_micro_batch_size_per_gpu=3")
    for world_size, plan, more in ((2, {"stop": 4}, ()), (1, {}, ("data.pack_tokens=128",))):
        one = command("balanced", *balanced, *more)
        plans = dict.fromkeys(range(world_size), plan)
        code, text = fork_server.run(one, world_size, output=tmp_path, plans=plans)
        assert code == (75 if plan else 0), text
    assert samples(tmp_path / "balanced") == samples(tmp_path / "plain")
    assert losses(tmp_path / "balanced") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)


@pytest.mark.slow
def test_token_shards_of_unequal_size_end_the_epoch_on_3_processes(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path, tiny_vocab: Path
) -> None:
    data = write_tiny_data(tmp_path / "data", tiny_vocab, (1, 8, 120))
    config = DataConfig(path=str(data), sequence_length=32, max_predictions_per_sequence=5)
    rows = open_source(config, 42).samples_in_epoch(0)
    one = [a for a in command("run") if not a.startswith("data.path=")]
    one += [f"data.path={data}", "run.log_samples=true", f"schedule.total_steps={rows // 12 + 2}"]
    code, text = fork_server.run(one, 3, output=tmp_path)
    assert code == 0, text
    used = [name for names in samples(tmp_path / "run").values() for name in names]
    assert len(used) == len(set(used))
    assert {number for epoch, number in used if epoch == 0} == set(range(rows))
