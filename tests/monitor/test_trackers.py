from __future__ import annotations

import io
import json
import re
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from bertds.config.load import load_config
from bertds.display.words import in_words, listed
from bertds.distributed.rank_info import free_port
from bertds.monitor import progress
from bertds.monitor import trackers as tracking
from bertds.monitor.progress import ProgressBar, ProgressLines, TimeLeft, describe
from bertds.monitor.remaining_time import LaterPhase
from bertds.monitor.trackers import HealthWarnings
from bertds.monitor.wandb_tracker import WandbTracker, has_key
from bertds.system.logs import log, start_logging
from bertds.train import entry
from tests.support.made_runs import train_line


def test_lines_in_words() -> None:
    text = describe(train_line(10, mfu=0.413, stall_seconds=3.6))
    for part in (
        "mlm 6.9",
        "MFU 41.3%",
        "0.70 GiB",
        "waiting for data 50%",
        "grad norm 1",
        "5,000 tokens",
    ):
        assert part in text
    assert describe({**train_line(1), "loss": None}) == "no finite loss"
    assert [in_words(s) for s in (45, 600, 7200, 259_200)] == [
        "45 s",
        "10 min",
        "2.0 h",
        "3.0 days",
    ]
    assert [listed(["a", 2, "c"], most) for most in (2, 3)] == ["a, 2 ...", "a, 2, c"]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged, whatever handlers earlier tests have left."""
    texts: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(progress.log, level, lambda text, *a: texts.append(text % a))
    return texts


def test_progress_lines_say_what_is_left(said: list[str]) -> None:
    lines = ProgressLines(TimeLeft(100), least_seconds=0.0)
    lines.line(train_line(10))
    lines.line(train_line(50))
    assert "step 50/100" in said[1] and "left" in said[1]


def test_the_display_of_a_resumed_run_begins_at_its_step() -> None:
    """Its first line may take minutes; 0/100 looked as if the run began again."""
    from rich.console import Console

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    shown = ProgressBar("phase1", TimeLeft(100), console, step=40)
    shown.close()
    assert "40/100 steps" in screen.getvalue() and "resuming" in screen.getvalue()
    assert "0/100 steps" not in screen.getvalue().replace("40/100", "")


@pytest.mark.parametrize("width", [60, 100])
def test_display_shows_all_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in memory: every number is whole on it, and log lines above it."""
    from rich.console import Console

    clock = iter([0.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=20)
    shown = ProgressBar("phase1", TimeLeft(100), console)
    shown.line(train_line(10, mfu=0.413))
    shown.line(train_line(60, mfu=0.413))
    shown.close()
    rows = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", screen.getvalue()).splitlines()
    last = max(number for number, row in enumerate(rows) if row.startswith("phase1 "))
    picture = [row.rstrip() for row in rows[last:]]
    assert picture[0].endswith("60/100 steps") and len(picture) > 2
    assert all(len(row) <= width and "…" not in row for row in picture)
    for part in (
        "loss",
        "mlm accuracy",
        "nsp accuracy",
        "lr 0.001",
        "grad norm 1",
        "tokens/s",
        "MFU 41.3%",
        "0.70 GiB",
        "waiting for data 0%",
        "80 s left",
    ):
        assert any(part in row for row in picture), part


def test_log_lines_go_where_standard_error_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    """A display that is at the foot of the terminal takes the place of standard error."""
    before = list(log.handlers)
    try:
        start_logging(is_main=True)
        taken = io.StringIO()
        with redirect_stderr(taken):
            log.info("above the display")
        log.info("after it")
    finally:
        log.handlers[:] = before
    assert "above the display" in taken.getvalue()
    assert "after it" in capsys.readouterr().err and "after it" not in taken.getvalue()


def test_a_full_disk_silences_tensorboard_and_not_the_run(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    board = tracking.Service("TensorBoard", tracking.TensorBoardTracker(tmp_path))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    monkeypatch.setattr(writer, "add_scalar", full)
    for step in (1, 2):
        board.line(train_line(step))
    monkeypatch.setattr(writer, "close", full)
    board.close()
    assert len(said) == 2 and all("No space left" in text for text in said)


def test_trackers_receive_every_number_and_trust_ratios() -> None:
    values = {"step": 3, "loss": 2.5, "grad_norm": None, "trust_ratio": {"decay": [0.1, 0.2, None]}}
    assert tracking.flat(values) == {
        "train/loss": 2.5,
        "trust_ratio/decay_min": 0.1,
        "trust_ratio/decay_median": 0.2,
    }
    assert tracking.flat({"step": 3, "split": "validation", "mlm_loss": 1.0}) == {
        "validation/mlm_loss": 1.0
    }


def test_warnings_are_shown_once(said: list[str]) -> None:
    watcher = HealthWarnings()
    for step in range(10, 200, 10):
        watcher.line(train_line(step, stall_seconds=3.0))
    loader = [text for text in said if "waits for the data loader" in text]
    assert len(loader) == 1 and "data.prefetch_steps" in loader[0]


def train(recipe: Path, deepspeed: Path, data: Path, run: Path, *assignments: str) -> int:
    return entry(
        [
            "--deepspeed_config",
            str(deepspeed),
            "--config",
            str(recipe),
            "--set",
            f"run.dir={run}",
            f"data.path={data}",
            "checkpoint.every_steps=2",
            *assignments,
        ]
    )


def test_wandb_offline_resumes_under_the_same_id_and_tensorboard_has_the_curve(
    tiny_recipe: Path,
    tiny_json: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    run = tmp_path / "run"
    trackers = ("tracking.wandb=offline", "tracking.tensorboard=true")
    run.mkdir()
    signed = "data.path=https://h/d?X-Amz-Signature=TOPSECRET0TOPSECRET0"
    monkeypatch.setattr(sys, "argv", ["bertds", "train", "--set", signed])
    (run / "STOP").write_text("")  # as an operator would, after a while: it stops after a step
    assert train(tiny_recipe, tiny_json, tiny_data, run, *trackers) == 75
    (run / "STOP").unlink()
    first = sorted((run / "wandb").glob("offline-run-*"))
    identity = json.loads((run / "wandb_id.json").read_text())["id"]
    assert len(first) == 1 and first[0].name.endswith(identity)
    assert train(tiny_recipe, tiny_json, tiny_data, run, *trackers) == 0
    both = sorted((run / "wandb").glob("offline-run-*"))
    assert len(both) == 2 and all(folder.name.endswith(identity) for folder in both)
    assert all(list(folder.glob(f"run-{identity}.wandb")) for folder in both)
    assert json.loads((run / "wandb_id.json").read_text())["id"] == identity
    last = max(run.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    record = last.read_bytes()
    assert b"https://h/d?***" in record and b"TOPSECRET0" not in record  # the command line
    assert b"step_00000006" in record and b"masked_lm_prob" in record  # checkpoints, settings

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    written = {
        line["step"]: line["mlm_loss"]
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "split" not in line
    }
    shown = {e.step: e.value for e in events.Scalars("train/mlm_loss")}
    assert shown == pytest.approx(written, rel=1e-6) and set(shown) == set(range(1, 7))


@pytest.fixture
def no_wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A W&B that knows no key and whose server refuses connections."""
    wandb = pytest.importorskip("wandb")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()  # it reads its environment once
    yield
    wandb.teardown()


def test_wandb_without_a_key_is_one_line_before_anything_is_built(
    no_wandb_server: None,
    tiny_recipe: Path,
    tiny_json: Path,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert train(tiny_recipe, tiny_json, tiny_data, run, "tracking.wandb=online") == 2
    assert capsys.readouterr().err.strip() == (
        "bertds: error: tracking.wandb=online: no W&B key found; run `wandb login` or set "
        "WANDB_API_KEY, or set tracking.wandb=offline"
    )
    assert not run.exists()
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {'a' * 40}\n")
    assert has_key()


def test_wandb_without_a_network_continues_offline_under_the_same_id(
    no_wandb_server: None,
    tiny_recipe: Path,
    tiny_json: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    run, began = tmp_path / "run", time.monotonic()
    common = (tiny_recipe, tiny_json, tiny_data, run, "tracking.wandb=online")
    assert train(*common, "schedule.total_steps=3") == 0
    assert time.monotonic() - began < 60
    said = (run / "log.txt").read_text()
    assert "Weights & Biases continues offline: http://127.0.0.1:" in said
    assert "cannot be reached; upload later with: wandb sync" in said
    monkeypatch.delenv("WANDB_API_KEY")  # a run that has begun is not refused for a key either
    assert train(*common) == 0
    assert "offline: no W&B key found" in (run / "log.txt").read_text()
    identity = json.loads((run / "wandb_id.json").read_text())["id"]
    folders = list((run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(identity in folder.name for folder in folders)


def test_a_refused_wandb_run_continues_offline(
    no_wandb_server: None, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers, but not as it should: no W&B server at all, a wrong key, an old one."""
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr("bertds.monitor.wandb_tracker.is_reachable", lambda url: True)
    real = wandb.init

    def init(**settings: Any) -> Any:
        if settings["mode"] == "online":
            raise wandb.errors.CommError("the server\nsays no")
        return real(**settings)

    monkeypatch.setattr(wandb, "init", init)
    (tmp_path / "wandb_id.json").write_text('{"id": "ab')  # torn by a crash
    config = load_config({"tracking": {"wandb": "online"}})
    tracker = WandbTracker(config, {}, tmp_path, "name")
    tracker.line(train_line(1))
    tracker.close()
    assert (
        "continues offline: the server says no; upload later with: wandb sync" in said[0]
        and len(said) == 1
    )
    identity = json.loads((tmp_path / "wandb_id.json").read_text())["id"]
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{identity}"))) == 1


def test_a_tracker_that_cannot_start_is_left_out(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    (tmp_path / "tensorboard").write_text("")  # no folder can be made, as on a full disk

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bertds.monitor.wandb_tracker.write_text", full)
    asked = {"tensorboard": True, "wandb": "offline"}
    config = load_config({"tracking": asked, "log": {"progress": "none"}})
    facts = {"model": {"vocab_size": 65}, "world_size": 1}
    started = tracking.start_trackers(config, facts, tmp_path)
    assert [type(tracker) for tracker in started] == [HealthWarnings]
    assert "Weights & Biases is not used: [Errno 28] No space left" in said[0]
    assert "TensorBoard is not used: " in said[1] and len(said) == 2


def test_time_left_counts_the_phases_that_follow(
    said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two phases of known operations at a known speed: 3e15 at 1 TFLOP/s on 2 devices."""
    clock = iter([0.0, 0.0, 100.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    later = [LaterPhase("b.yaml", 1e15), LaterPhase("c.yaml", 2e15)]
    lines = ProgressLines(TimeLeft(100, later, devices=2), least_seconds=0.0)
    lines.line(train_line(10, tflops=1.0))
    lines.line(train_line(60, tflops=1.0))  # 100 s for 50 steps: 80 s for 40; 1,500 s later
    assert "left" not in said[0]
    assert said[1].endswith("80 s left, 26 min with the next 2 phases")


def test_a_run_limited_by_time_shows_the_remaining_time(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.1 hours; 72 s of them were used before this start; the steps of each line take 36 s.

    A validation of 36 s comes before the third line.
    """
    clock = iter([0.0, 0.0, 36.0, 36.0, 108.0, 108.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    left = TimeLeft(10**6, clock_hours=0.1, seconds=72.0)
    lines = ProgressLines(left, least_seconds=0.0)
    lines.line(train_line(30, seconds=36.0))
    lines.line(train_line(40, seconds=36.0))
    assert "step 30/100 " in said[0] and "step 40/100 " in said[1]
    assert "4 min left" in said[1]  # 216 s
    lines.line(train_line(50, seconds=36.0))
    assert "step 50/83 " in said[2]  # 216 of 360 s have passed
