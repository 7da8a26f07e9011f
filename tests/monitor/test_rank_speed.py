"""The slow rank is named, with its host and GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertds.commands.runs.status import in_lines
from bertds.distributed.device_timer import DeviceClock
from bertds.monitor import rank_speed as module
from bertds.monitor.health import findings
from bertds.monitor.rank_speed import RankSpeed, slow_ones
from bertds.monitor.run_files import is_metric_line, read_metrics
from bertds.monitor.status import read_status
from tests.support.fork_server import ForkServer

CPU = torch.device("cpu")


class Ranks:
    """Ranks as seen from rank 0; the test says what the others measure."""

    def __init__(self, size: int = 4) -> None:
        self.rank, self.world_size, self.device = 0, size, CPU
        self.forward_clock, self.backward_clock = DeviceClock(CPU), DeviceClock(CPU)
        self.others: list[list[float]] = []
        self.gathered: list[Any] = [{"host": f"node{n}", "gpu": n % 2} for n in range(size)]
        self.next: list[list[Any]] = []

    def gather_objects(self, value: Any) -> list[Any]:
        return self.next.pop(0) if self.next else self.gathered

    def global_sums(self, values: list[float]) -> torch.Tensor:
        table = torch.tensor(values, dtype=torch.float64).view(self.world_size, -1)
        assert table[1:].abs().sum() == 0  # a rank reports only itself
        return torch.cat([table[:1], torch.tensor(self.others, dtype=torch.float64)]).view(-1)


def line(ranks: Ranks, speed: RankSpeed, *steps: list[float]) -> dict[str, Any]:
    """A train line of one or more steps: each rank's seconds per token, times other numbers."""
    size, count = ranks.world_size, len(steps)
    tokens = [100 * (n + 1) for n in range(size)]
    for forward in steps:
        ranks.forward_clock._seconds = forward[0] * tokens[0]
        speed.end_step(tokens[0])
    ranks.backward_clock._seconds = count * 0.5 * tokens[0] + 3.0  # three seconds of waiting
    ranks.others = []
    for rank in range(1, size):
        seconds = [forward[rank] for forward in steps]
        done = count * tokens[rank]
        totals = [sum(seconds) * tokens[rank], 0.5 * done, 0.25, done]
        ranks.others.append([*totals, *seconds[-20:]])
    return speed.line()


def test_a_rank_that_is_10_percent_slower_over_20_steps_is_named() -> None:
    ranks = Ranks()
    speed = RankSpeed(ranks, DeviceClock(CPU))
    for _ in range(19):
        assert "slow_ranks" not in line(ranks, speed, [1.0, 1.0, 1.0, 1.12])
    values = line(ranks, speed, [1.0, 1.0, 1.0, 1.12])
    assert values["slow_ranks"] == [{"rank": 3, "host": "node3", "gpu": 1, "slower": 0.12}]
    assert values["rank_seconds"] == {
        "forward": [100.0, 250.0, 448.0],
        "backward": [53.0, 125.0, 200.0],
        "waiting": [0.25, 0.25, 3.0],
    }
    assert "slow_ranks" in line(ranks, speed, [1.0, 1.0, 1.0, 1.0])  # one of 20 is no rule
    assert "slow_ranks" not in line(ranks, speed, [1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("every_steps", "usual", "named_at"),
    [
        # The first line whose last 20 steps hold at least 19 slow ones, worked out by hand.
        (1, 0, 20),
        (1, 7, 26),
        (4, 7, 28),
        (10, 7, 30),
        (20, 7, 40),
        (50, 7, 50),
        (50, 30, 50),
        (50, 31, 50),
        (50, 32, 100),
        (3, 0, 21),
    ],
)
def test_the_window_of_twenty_counts_steps_not_metric_lines(
    every_steps: int, usual: int, named_at: int
) -> None:
    """Two ranks, 2 ms per token; after the usual steps rank 1 needs 2.3 ms."""
    ranks = Ranks(2)
    speed = RankSpeed(ranks, DeviceClock(CPU))
    seconds = [[2.0, 2.0]] * usual + [[2.0, 2.3]] * 200
    for step in range(every_steps, named_at + 1, every_steps):
        values = line(ranks, speed, *seconds[step - every_steps : step])
        slow = [(rank["rank"], rank["slower"]) for rank in values.get("slow_ranks", [])]
        assert slow == ([(1, 0.15)] if step == named_at else []), step


def test_the_seconds_of_all_steps_are_in_the_line() -> None:
    ranks = Ranks(2)
    speed = RankSpeed(ranks, DeviceClock(CPU))
    values = line(ranks, speed, *([[1.0, 2.0]] * 5), *([[3.0, 3.0]] * 30))
    # 100 tokens on rank 0: 5 x 100 s and 30 x 300 s; 200 on rank 1: 5 x 400 s and 30 x 600 s.
    assert values["rank_seconds"]["forward"] == [9500.0, 14750.0, 20000.0]
    assert line(ranks, speed, [1.0, 2.0])["rank_seconds"]["forward"] == [100.0, 250.0, 400.0]


@pytest.mark.parametrize("pause", [[5.0, 1.0, 1.0, 1.0], [1.0, 1.0, 9.0, 1.0]])
def test_a_single_pause_or_a_difference_below_10_percent_is_not_a_slow_rank(
    pause: list[float],
) -> None:
    ranks = Ranks()
    speed = RankSpeed(ranks, DeviceClock(CPU))
    for number in range(40):
        values = line(ranks, speed, pause if number == 25 else [1.0, 1.08, 1.0, 1.0])
        assert "slow_ranks" not in values


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("steps", [1, 10])
def test_noise_alone_is_not_a_slow_rank(size: int, steps: int) -> None:
    """Steps of a busy machine: 33% of noise in each, and a pause in one of twenty."""
    chance = np.random.default_rng(size)
    ranks = Ranks(size)
    speed = RankSpeed(ranks, DeviceClock(CPU))
    for number in range(2000 // steps):
        noise = np.exp(0.3 * chance.standard_normal((steps, size)))
        noise *= np.where(chance.random((steps, size)) < 0.05, 5.0, 1.0)
        values = line(ranks, speed, *noise.tolist())
        assert "slow_ranks" not in values, number


def test_a_slow_rank_is_found_in_noise() -> None:
    chance = np.random.default_rng(0)
    ranks = Ranks()
    speed = RankSpeed(ranks, DeviceClock(CPU))
    named = []
    for _ in range(99):
        noise = np.exp(0.02 * chance.standard_normal(4)) * [1.0, 1.0, 1.15, 1.0]
        named.append([r["rank"] for r in line(ranks, speed, noise.tolist()).get("slow_ranks", [])])
    assert named[:19] == [[]] * 19 and named[19:] == [[2]] * 80


def test_of_two_ranks_each_is_compared_with_the_other() -> None:
    assert slow_ones([1.0, 1.12], 0.1) == [(1, pytest.approx(0.12))]
    assert slow_ones([1.0, 1.0, 1.0, 2.0], 0.1) == [(3, 1.0)]
    assert slow_ones([0.0, 0.0], 0.1) == []


def test_a_slow_rank_is_reported_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ranks = Ranks()
    speed = RankSpeed(ranks, DeviceClock(CPU))
    steady = [0.010, 0.011, 0.010, 0.014]
    ranks.next = [[0.010, 0.010, 0.020, 0.020], steady, [0.010, 0.020, 0.010, 0.015]]
    monkeypatch.setattr(module.log, "propagate", True)
    with caplog.at_level(logging.WARNING, logger="bertds"):
        speed.check_at_start()
    # A set: another test's handler may have kept the record, too.
    assert {record.getMessage() for record in caplog.records} == {
        "rank 3 (GPU 1 of node3) takes 40% longer than the other ranks for a matrix product"
    }
    caplog.clear()
    ranks.next = [[0.010, 0.010, 0.010, 0.020], [0.020, 0.010, 0.010, 0.010], steady]
    with caplog.at_level(logging.WARNING, logger="bertds"):
        speed.check_at_start()
    assert not caplog.records and ranks.next == [steady]  # the second found nothing


def test_the_product_is_timed() -> None:
    assert 0.0 < module._time_product(CPU) < 5.0


def test_findings_and_metric_lines_report_it() -> None:
    from tests.support.made_runs import train_line

    slow = {"rank": 3, "host": "node3", "gpu": 1, "slower": 0.14}
    values = {**train_line(40), "slow_ranks": [slow, {**slow, "rank": 0, "gpu": None}]}
    assert is_metric_line(values)
    for odd in ({**slow, "host": 3}, {**slow, "slower": "x"}, {**slow, "rank": -1}, 3):
        assert not is_metric_line({**values, "slow_ranks": [odd]})
    (found,) = findings([values])
    assert found.text == (
        "slower than the other ranks in the last steps: rank 3 (GPU 1 of node3) by 14%, "
        "rank 0 (node3) by 14%"
    )


@pytest.mark.slow
def test_a_slow_rank_is_named_in_the_log_and_by_status(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    line = command("run", "schedule.total_steps=24", "log.every_steps=12")
    code, text = fork_server.run(line, 2, output=tmp_path, plans={1: {"drag": 0.05}})
    assert code == 0, text
    assert "slower than the other ranks in the last steps: rank 1 (" in text
    last = read_metrics(tmp_path / "run/metrics.jsonl").train[-1]
    assert [rank["rank"] for rank in last["slow_ranks"]] == [1]
    low, _, high = last["rank_seconds"]["forward"]
    assert high - low > 12 * 3 * 0.04  # steps of three micro batches
    assert last["rank_seconds"]["waiting"][2] > 0.05  # rank 0 waits meanwhile
    assert "slower than the other ranks" in in_lines(read_status(tmp_path / "run"))
