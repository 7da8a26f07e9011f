"""Kills a tiny training run again and again, and compares what comes of it with an unbroken run.

    python tests/end_to_end/soak/kill.py --kills 200 --seed 0

Each life of the run is ended by SIGKILL, at a random passing of a random named point (before or
after an update, while a file is written, before the manifest, around the rename, while old
checkpoints are removed, in a validation, while a checkpoint is loaded ...) or at a random moment.
With two ranks, one of them is killed, and the other must end on its own. Then the same command
starts again. When all kills are done the run is allowed to finish, and must equal the unbroken one:
weights and moments bit for bit, the losses of every step, and each step's samples once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import argparse
import collections
import random
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, field

from tests.support.fault_injection import POINTS
from tests.support.fork_server import ForkServer
from tests.support.read_runs import assert_same_state, losses, samples

SETTINGS = [
    "schedule.total_steps=16",
    "checkpoint.every_steps=2",
    "validation.every_steps=5",
    "validation.max_samples=12",
    "run.log_samples=true",
    "guard.peer_timeout_seconds=6",
    "log.every_steps=3",
    "model.hidden_dropout_prob=0.1",
]
PASSINGS = {
    "engine.wrap": 1,
    "run.continue": 1,
    "engine.forward": 40,
    "checkpoint.write": 120,
    "checkpoint.sync": 4,
    "engine.evaluate": 6,
    "checkpoint.remove": 3,
}
ROUNDS = (
    # world size, settings
    (1, ["deepspeed.optimizer.type=Lamb", "deepspeed.zero_optimization.stage=2"]),
    (1, ["checkpoint.background=true"]),
    (2, ["deepspeed.optimizer.type=Lamb", "deepspeed.zero_optimization.stage=2"]),
    (2, ["deepspeed.zero_optimization.stage=3", "checkpoint.background=true"]),
)


@dataclass
class Tally:
    """What happened."""

    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    starts: int = 0
    rounds: int = 0
    fallbacks: int = 0
    seconds: float = 0.0
    slowest_survivor: float = 0.0


def soak(
    server: ForkServer,
    command: Callable[..., list[str]],
    folder: Path,
    kills: int,
    seed: int,
    lives: int = 25,
) -> Tally:
    """Run rounds of at most ``lives`` kills each, until there were ``kills``.

    Args:
        server: forks the ranks.
        command: ``command(run folder name, *assignments)`` builds a training command.
        folder: where those run folders are.
        kills: how many SIGKILLs.
        seed: decides where they fall.
        lives: kills per round.
    """
    chance, tally, began = random.Random(seed), Tally(), time.monotonic()
    whole: dict[int, Path] = {}
    while sum(tally.kills.values()) < kills:
        kind = tally.rounds % len(ROUNDS)
        world_size, settings = ROUNDS[kind]
        if kind not in whole:
            whole[kind] = folder / f"whole{kind}"
            one = command(whole[kind].name, *SETTINGS, *settings)
            code, text = server.run(one, world_size, output=folder)
            assert code == 0, text
        name = f"killed{tally.rounds}"
        one = command(name, *SETTINGS, *settings)
        left = min(lives, kills - sum(tally.kills.values()))
        while left > 0:
            landed = _one_life(server, one, world_size, folder, chance, tally)
            if landed == "done":
                # It outran its killer: take the end away, so that there is more to kill.
                (folder / name / "DONE").unlink()
                checkpoints = sorted((folder / name / "checkpoints").glob("step_*"))
                shutil.rmtree(checkpoints[-1])
                if len(checkpoints) < 2:
                    break
            else:
                left -= 1
                tally.kills[f"{landed} ({world_size} rank{'s' * (world_size > 1)})"] += 1
        if not (folder / name / "DONE").exists():
            code, text = server.run(one, world_size, output=folder)
            assert code == 0, text
            tally.starts += 1
        compare(folder / name, whole[kind])
        tally.rounds += 1
        done, minutes = sum(tally.kills.values()), (time.monotonic() - began) / 60
        print(f"round {tally.rounds}: {done} kills, {minutes:.0f} min", file=sys.stderr, flush=True)
        shutil.rmtree(folder / name)
    tally.seconds = time.monotonic() - began
    return tally


def _one_life(
    server: ForkServer,
    command: list[str],
    world_size: int,
    folder: Path,
    chance: random.Random,
    tally: Tally,
) -> str:
    """Start the run and kill it. Returns where, or "done" if it came to its end first."""
    victim = chance.randrange(world_size)
    point = chance.choice((*POINTS, "any moment", "any moment"))
    plans = {}
    if point != "any moment":
        passing = 1 + chance.randrange(PASSINGS.get(point, 6))
        plans[victim] = {"die": [point, passing, signal.SIGKILL]}
    ranks = server.start(command, world_size, output=folder, plans=plans)
    tally.starts += 1
    if not plans:
        time.sleep(chance.uniform(0.05, 2.0))
        ranks.signal(victim, signal.SIGKILL)
    while ranks.poll()[victim] is None:
        time.sleep(0.01)
    dead = time.monotonic()
    if not any(word in ranks.text(0) for word in ("starting: ", "continuing at ")):
        # Perhaps the ranks have not met yet: this far only a launcher sees that one is missing,
        # and ends the others.
        ranks.kill()
    codes = ranks.wait(60)
    text = "".join(ranks.text(rank) for rank in range(world_size))
    tally.fallbacks += "falling back to" in text
    if codes[victim] != -signal.SIGKILL:
        assert codes == [0] * world_size, f"exit codes {codes}, {point}: {text}"
        return "done"
    assert all(code in (0, 1, -signal.SIGKILL) for code in codes), (
        f"exit codes {codes}, {point}: {text}"
    )
    tally.slowest_survivor = max(tally.slowest_survivor, time.monotonic() - dead)
    return point


def compare(killed: Path, whole: Path) -> None:
    """Check that a run that was killed equals the unbroken one."""
    assert_same_state(killed, whole)
    assert losses(killed) == losses(whole)
    assert samples(killed) == samples(whole)
    assert all(len(set(used)) == 12 for used in samples(killed).values())


def main() -> int:
    """Make a corpus, kill, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lives", type=int, default=25, help="kills per round")
    parser.add_argument("--nice", type=int, default=10)
    args = parser.parse_args()
    from tests.support.tiny import TINY_JSON, TINY_RECIPE, write_tiny_data, write_tiny_vocab

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tiny.yaml").write_text(TINY_RECIPE)
        (folder / "tiny.json").write_text(TINY_JSON)
        write_tiny_data(folder / "data", write_tiny_vocab(folder / "vocab.txt"))

        def command(run: str, *assignments: str) -> list[str]:
            return [
                "--deepspeed_config",
                str(folder / "tiny.json"),
                "--config",
                str(folder / "tiny.yaml"),
                "--set",
                f"run.dir={folder / run}",
                f"data.path={folder / 'data'}",
                *assignments,
            ]

        server = ForkServer(nice=args.nice)
        try:
            tally = soak(server, command, folder, args.kills, args.seed, args.lives)
        finally:
            server.close()
    for point, count in sorted(tally.kills.items()):
        print(f"{count:5}  {point}")
    print(
        f"{sum(tally.kills.values())} kills, {tally.starts} starts, {tally.rounds} rounds, "
        f"{tally.fallbacks} fallbacks to an older checkpoint, {tally.seconds:.0f} s; a survivor "
        f"was gone {tally.slowest_survivor:.1f} s after its peer at the latest; every round ended "
        "equal to the unbroken run"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
