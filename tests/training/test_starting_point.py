"""All ranks begin alike, and a run notices that its data is no longer what it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertds.checkpoint.find import locate
from bertds.checkpoint.train_state import TrainState
from bertds.config.recipe import DataConfig
from bertds.data.sources.open import open_source
from bertds.errors import CheckpointError, DataError
from bertds.training.starting_point import StartingPoint, check_alike
from tests.checkpoint.test_checkpoint import make
from tests.support.fork_server import ForkServer
from tests.support.tiny import write_tiny_data


class Ranks:
    """An engine whose second rank answers something else."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, ("node2", *self.answer(value[1:]))]


class Data:
    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def describe(self) -> dict[str, Any]:
        return {"kind": "token shards", **self.facts}


def test_ranks_that_would_start_elsewhere_are_named(tmp_path: Path) -> None:
    make(tmp_path).save(TrainState(step=7))
    start, data = StartingPoint(locate(tmp_path), True), Data(path="/a", documents=5)
    check_alike(Ranks(lambda mine: mine), start, data)
    with pytest.raises(CheckpointError, match=r"from step_00000007 .* rank 1 on node2 from the be"):
        check_alike(Ranks(lambda mine: ("the beginning", mine[1])), start, data)
    with pytest.raises(CheckpointError, match="must see the same run folder"):
        check_alike(Ranks(lambda mine: ("step_00000007 (0123)", mine[1])), start, data)
    with pytest.raises(CheckpointError, match="would start from the beginning, rank 1"):
        check_alike(Ranks(lambda mine: ("step_00000007 (0123)", mine[1])), None, data)


def test_ranks_that_read_other_data_are_named() -> None:
    data = Data(path="/a", documents=5)
    copy = Data(path="/scratch/b", documents=5).describe()
    copy.pop("path")
    check_alike(Ranks(lambda mine: (mine[0], copy)), None, data)  # a copy elsewhere is as good
    with pytest.raises(
        DataError, match=r"rank 1 on node2 reads different data .*documents 6 instead"
    ):
        check_alike(Ranks(lambda mine: (mine[0], {**copy, "documents": 6})), None, data)


@pytest.mark.slow
def test_data_that_changed_between_two_starts_is_reported(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    tiny_data: Path,
    tiny_vocab: Path,
) -> None:
    def start(data: Path, **plan: int) -> tuple[int, str]:
        kept = [word for word in command("run") if not word.startswith("data.path=")]
        return fork_server.run([*kept, f"data.path={data}"], output=tmp_path, plans={0: plan})

    assert start(tiny_data, stop=2)[0] == 75
    moved = tmp_path / "moved"
    shutil.copytree(tiny_data, moved)
    code, text = start(moved, stop=4)
    assert code == 75 and "resuming at step 2" in text and "warning" not in text
    code, text = start(write_tiny_data(tmp_path / "other", tiny_vocab, (5, 31, 60)))
    assert code == 0 and "resuming at step 4" in text
    assert "warning: the data has changed since step_00000004: checksum " in text


def test_the_checksum_of_the_data_covers_its_shards(
    tmp_path: Path, tiny_data: Path, tiny_vocab: Path
) -> None:
    config = {"sequence_length": 32, "max_predictions_per_sequence": 5}
    other = write_tiny_data(tmp_path / "other", tiny_vocab, (6, 30, 60))
    one, two = (
        open_source(DataConfig(path=str(path), **config), 1).describe()
        for path in (tiny_data, other)
    )
    assert one["documents"] == two["documents"] and one["checksum"] != two["checksum"]
