from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertds.checkpoint import save as checkpoint_module
from bertds.checkpoint.find import locate, newest_good, step_folders
from bertds.checkpoint.format import CheckpointReader, write_pieces
from bertds.checkpoint.save import Checkpoints
from bertds.checkpoint.train_state import TrainState
from bertds.cli import main as bertds
from bertds.config.run_settings import CheckpointConfig
from bertds.engine.state_pieces import Piece
from bertds.errors import BertdsError, CheckpointError
from bertds.system.atomic_files import temporary_name
from bertds.system.fault_points import injected
from tests.support.disk_order import DiskOrder

SHAPES = {"a.weight": (3, 4), "b.bias": (5,)}


class FakeEngine:
    """One rank that owns everything, cut into uneven pieces."""

    rank = 0

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.full = {
            (name, kind): torch.randn(torch.Size(shape).numel(), generator=generator)
            for name, shape in SHAPES.items()
            for kind in ("weight", "exp_avg", "exp_avg_sq")
        }

    def pieces(self) -> list[Piece]:
        cut = [(0, 2), (2, 2), (2, 100)]  # an empty piece too, as a rank without elements has
        return [
            Piece(name, kind, start, tensor[start:end])
            for (name, kind), tensor in self.full.items()
            for start, end in cut
        ]

    def optimizer_steps(self) -> int:
        return 7

    def extra_state(self) -> dict[str, Any]:
        return {}

    def gather_objects(self, value: Any) -> list[Any]:
        return [value]


class OfTwoRanks(FakeEngine):
    """Rank 0 of two; the other has 10 MiB to write, and 5 MiB of free space."""

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, (10 << 20, 5 << 20, "") if isinstance(value, tuple) else value]


def make(tmp_path: Path, engine: FakeEngine | None = None, **config: Any) -> Checkpoints:
    facts = {"model": {}, "tokenizer": {}, "world_size": 1}
    return Checkpoints(tmp_path, CheckpointConfig(**config), engine or FakeEngine(), SHAPES, facts)  # type: ignore[arg-type]


def save_steps(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(TrainState(step=step, best_step=2))


def test_slices_read_back_across_pieces(tmp_path: Path) -> None:
    engine = FakeEngine()
    save_steps(make(tmp_path, engine), 5)
    reader = locate(tmp_path)
    assert reader.manifest["step"] == 5 and reader.manifest["optimizer_steps"] == 7
    for (name, kind), full in engine.full.items():
        for start, length in ((0, full.numel()), (1, 3), (2, 1), (3, 0)):
            part = reader.read(name, kind, start, length)
            assert torch.equal(part, full[start : start + length])
    weights = dict(reader.weights())
    assert weights["a.weight"].shape == (3, 4)
    with pytest.raises(CheckpointError, match="contains 0 of the 2 required elements of weight c"):
        reader.read("c", "weight", 0, 2)


def test_the_files_are_plain_safetensors(tmp_path: Path) -> None:
    engine = FakeEngine()
    save_steps(make(tmp_path, engine), 5)
    tensors = load_file(tmp_path / "checkpoints/step_00000005/rank_00000.safetensors")
    assert torch.equal(tensors["weight/b.bias/2"], engine.full["b.bias", "weight"][2:])


@pytest.mark.parametrize("letters", range(8))
def test_the_values_begin_at_a_multiple_of_8_bytes(tmp_path: Path, letters: int) -> None:
    """Whatever the length of the header, which readers map into memory with the values."""
    write_pieces(tmp_path, 0, [Piece("a" * (letters + 1), "weight", 0, torch.ones(3))])
    file = tmp_path / "rank_00000.safetensors"
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0
    [values] = load_file(file).values()
    assert values.tolist() == [1.0, 1.0, 1.0]


def test_keeping_rules(tmp_path: Path) -> None:
    checkpoints = make(tmp_path, keep_last=2, milestone_steps=4, keep_best=True)
    save_steps(checkpoints, 1, 2, 3, 4, 5, 6, 7)
    kept = [int(p.name[5:]) for p in step_folders(tmp_path / "checkpoints")]
    assert kept == [7, 6, 4, 2]
    assert (tmp_path / "checkpoints/latest").read_text() == "step_00000007\n"
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))
    save_steps(make(tmp_path / "checkpoints", keep_last=1, keep_best=False), 2, 3)
    kept = step_folders(tmp_path / "checkpoints" / "checkpoints")
    assert [path.name for path in kept] == ["step_00000003"]


def test_a_power_failure_never_shows_a_checkpoint_without_its_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing may be visible before what it contains is on the disk, or removed before that."""
    checkpoints = make(tmp_path, keep_last=1)
    save_steps(checkpoints, 1)
    folder, disk = tmp_path / "checkpoints", DiskOrder(monkeypatch)
    save_steps(checkpoints, 2)
    writing = folder / ".tmp-step_00000002"
    published = disk.place("rename", folder / "step_00000002")
    named = disk.place("rename", writing / "manifest.json")
    assert disk.place("flush", writing / "rank_00000.safetensors") < named
    assert disk.place("flush", temporary_name(writing / "manifest.json")) < named
    assert named < disk.last("flush", writing, published)
    assert disk.place("flush", temporary_name(folder / "latest")) < (
        latest := disk.place("rename", folder / "latest")
    )
    removed = disk.place("remove", folder / ".tmp-removed-step_00000001")
    assert published < latest < disk.last("flush", folder, removed)


def test_damaged_checkpoints_do_not_count_as_the_last_ones(tmp_path: Path) -> None:
    """After a start that skipped step 30, what is saved before it must not be removed for it."""
    save_steps(make(tmp_path, keep_last=0), 10, 20, 30)
    damage(tmp_path / "checkpoints/step_00000030", "flip")
    again = make(tmp_path, keep_last=1)
    again.continue_from(20)
    save_steps(again, 25)
    assert [p.name for p in step_folders(tmp_path / "checkpoints")] == [
        "step_00000030",
        "step_00000025",
    ]
    assert locate(tmp_path).manifest["step"] == 25
    save_steps(again, 35)
    assert [p.name for p in step_folders(tmp_path / "checkpoints")] == ["step_00000035"]


def test_the_checkpoint_that_a_run_continues_from_counts_as_one_of_the_last(tmp_path: Path) -> None:
    save_steps(make(tmp_path), 10, 20)
    again = make(tmp_path, keep_last=2)
    again.continue_from(20)
    save_steps(again, 30)
    assert [int(p.name[5:]) for p in step_folders(tmp_path / "checkpoints")] == [30, 20]


def test_the_best_checkpoint_stays_until_a_better_one_is_saved(tmp_path: Path) -> None:
    """A validation that ends during a background save must not count in that save."""
    checkpoints = make(tmp_path, keep_last=1, keep_best=True, background=True)
    checkpoints.save(TrainState(step=1, best_step=1))
    state, validated = TrainState(step=2, best_step=1), threading.Event()
    with injected("checkpoint.manifest", lambda: validated.wait(20)):
        checkpoints.save(state, wait=False)
        state.step = state.best_step = 3
        validated.set()
        checkpoints.finish()
    assert [int(p.name[5:]) for p in step_folders(tmp_path / "checkpoints")] == [2, 1]


def test_steps_are_ordered_by_number(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 5):
        (tmp_path / f"step_{step:08d}").mkdir()
    (tmp_path / "step_1").mkdir()
    names = [path.name for path in step_folders(tmp_path)]
    assert names == ["step_100000000", "step_99999999", "step_00000005"]


def damage(folder: Path, how: str) -> None:
    data, manifest = folder / "rank_00000.safetensors", folder / "manifest.json"
    if how == "flip":
        content = bytearray(data.read_bytes())
        content[-7] ^= 4
        data.write_bytes(content)
    elif how == "truncate":
        data.write_bytes(data.read_bytes()[:-9])
    elif how == "missing file":
        data.unlink()
    elif how == "missing manifest":
        manifest.unlink()
    elif how == "manifest flip":
        manifest.write_text(manifest.read_text().replace('"step": 2', '"step": 3', 1))
    elif how == "manifest truncated":
        manifest.write_text(manifest.read_text()[:100])


@pytest.mark.parametrize(
    "how",
    ["flip", "truncate", "missing file", "missing manifest", "manifest flip", "manifest truncated"],
)
def test_a_damaged_checkpoint_is_skipped_and_both_are_named(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(make(tmp_path), 1, 2)
    said: list[str] = []
    monkeypatch.setattr(checkpoint_module.log, "warning", lambda text, *a: said.append(text % a))
    damage(tmp_path / "checkpoints/step_00000002", how)
    reader = newest_good(tmp_path / "checkpoints")
    assert reader is not None and reader.manifest["step"] == 1
    assert "step_00000002" in said[0] and "falling back to" in said[0]
    assert "step_00000001" in said[0]


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    save_steps(make(tmp_path), 1)
    folder = tmp_path / "checkpoints/step_00000001"
    chance = random.Random(0)
    for file in sorted(folder.iterdir()):
        good = file.read_bytes()
        for _ in range(30):
            bad = bytearray(good)
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
            file.write_bytes(bad)
            # White space in the manifest carries no meaning; all else must be noticed.
            if file.name == "manifest.json" and _same_meaning(good, bytes(bad)):
                continue
            with pytest.raises(CheckpointError):
                CheckpointReader(folder)
        file.write_bytes(good)
    CheckpointReader(folder)


def _same_meaning(good: bytes, bad: bytes) -> bool:
    try:
        return json.loads(good) == json.loads(bad)
    except ValueError:
        return False


def test_all_damaged_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert newest_good(tmp_path / "checkpoints") is None
    save_steps(make(tmp_path), 1)
    damage(tmp_path / "checkpoints/step_00000001", "flip")
    with pytest.raises(CheckpointError, match="no checkpoint is intact"):
        newest_good(tmp_path / "checkpoints")


def test_a_latest_file_that_names_no_checkpoint_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(make(tmp_path), 1)
    said: list[str] = []
    monkeypatch.setattr(checkpoint_module.log, "warning", lambda text, *a: said.append(text % a))
    (tmp_path / "checkpoints/latest").write_text("step_00000099\n")
    reader = newest_good(tmp_path / "checkpoints")
    assert reader is not None and reader.manifest["step"] == 1
    assert "step_00000099" in said[0]


def test_a_save_cut_short_is_invisible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = make(tmp_path)
    save_steps(checkpoints, 1)

    def fail() -> None:
        raise OSError(28, "No space left on device")

    message = r"checkpoint not saved: .*disk is full"
    with injected("checkpoint.manifest", fail), pytest.raises(BertdsError, match=message):
        save_steps(checkpoints, 2)
    assert [p.name for p in step_folders(tmp_path / "checkpoints")] == ["step_00000001"]
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))
    save_steps(checkpoints, 2)  # the failed one does not count as saved
    assert locate(tmp_path).manifest["step"] == 2


def test_left_overs_of_a_killed_save_are_no_part_of_the_next_one(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".tmp-step_00000001" / "rank_00007.safetensors"
    left.parent.mkdir(parents=True)
    left.touch()
    save_steps(make(tmp_path), 1)
    files = {path.name for path in (tmp_path / "checkpoints" / "step_00000001").iterdir()}
    assert files == {"manifest.json", "rank_00000.safetensors"}


def test_too_little_disk_space_is_noticed_before_writing(tmp_path: Path) -> None:
    message = r"0\.0 MiB free, but the checkpoint needs 1\.0 MiB"
    with injected("disk.free", lambda free: 1000), pytest.raises(BertdsError, match=message):
        save_steps(make(tmp_path), 1)
    assert step_folders(tmp_path / "checkpoints") == []
    # The parts of all ranks must fit where there is the least room.
    message = r"5\.0 MiB free, but the checkpoint needs 11\.2 MiB"
    with pytest.raises(BertdsError, match=message):
        save_steps(make(tmp_path, OfTwoRanks()), 1)


def test_a_damaged_step_is_replaced_when_it_is_saved_again(tmp_path: Path) -> None:
    save_steps(make(tmp_path), 1, 2)
    damage(tmp_path / "checkpoints/step_00000002", "flip")
    save_steps(make(tmp_path), 2)
    assert locate(tmp_path).manifest["step"] == 2


def test_a_missing_checkpoint_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run or checkpoint"):
        locate(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"neither a run folder nor a checkpoint$"):
        locate(tmp_path)
    (tmp_path / "tuned" / "model").mkdir(parents=True)
    (tmp_path / "tuned" / "model" / "config.json").touch()
    with pytest.raises(CheckpointError, match=r"\(did you mean .*/tuned/model\?\)$"):
        locate(tmp_path / "tuned")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(CheckpointError, match="the run has no checkpoint yet"):
        locate(tmp_path)


def test_list_and_verify_a_run_a_checkpoint_and_a_converted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_steps(make(tmp_path, keep_last=0), 1, 2, 3)
    damaged = tmp_path / "checkpoints" / "step_00000002" / "rank_00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    whole, run = tmp_path / "checkpoints" / "step_00000003", str(tmp_path)
    assert bertds(["checkpoint", "list", run]) == 0  # sizes are looked at by verify
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [f"step_0000000{n}" for n in (1, 2, 3)]
    assert all("  1 process  " in line for line in listed)
    assert bertds(["checkpoint", "verify", run]) == 1
    one, two, three = capsys.readouterr().out.splitlines()
    assert one.endswith("intact") and three.endswith("intact")
    assert two.startswith("step_00000002  DAMAGED: ") and str(damaged) in two
    assert bertds(["checkpoint", "verify", str(whole)]) == 0
    assert capsys.readouterr().out == three + "\n"
    assert bertds(["checkpoint", "convert", run, "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert bertds(["checkpoint", "verify", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("step_00000003  ")
    for path, message in ((tmp_path / "no", "no such run"), (damaged.parent, "DAMAGED")):
        assert bertds(["checkpoint", "verify", str(path)]) in (1, 2)
        answer = capsys.readouterr()
        assert message in answer.out + answer.err
