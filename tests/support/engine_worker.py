"""Runs engine cases on several ranks, forked from a process that has imported everything.

Rank 0 writes what each case found to ``<name>.pt``, in the folder of the case file.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tests.support import averaging
from tests.support import gradient_oracle as oracle
from tests.support import toy_engine as toy
from tests.support.ranks import free_ports

if TYPE_CHECKING:
    from tests.support.fork_server import ForkServer


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Train as the case says, and return what there is to compare."""
    if "gradients" in case:
        return oracle.run_case(case)
    if "average" in case:
        return averaging.run_case(case)
    engine = toy.make_engine(case["values"])
    first = case.get("first", 0)
    if "load" in case:
        state = torch.load(case["load"])
        engine.load_pieces(toy.reader(state), optimizer_steps=first, moments=True)
    start = toy.gather_state(engine)
    bad = case.get("poison")
    losses, applied = [], []
    if "deepspeed_save" in case:
        step, folder = case["deepspeed_save"]
        losses, applied = toy.train(engine, first, step)
        engine._engine.save_checkpoint(folder, tag="saved")
        first = step
    more = toy.train(engine, first, case["last"], poison=lambda *place: list(place) == bad)
    losses, applied = losses + more[0], applied + more[1]
    lamb = engine._optimizer
    result = {
        "losses": losses,
        "applied": engine.gather_objects(applied),
        "start": start,
        "state": toy.gather_state(engine),
        "ratios": lamb.trust_ratios() if hasattr(lamb, "trust_ratios") else {},
        "summary": engine.trust_ratios(),
        "norm": engine.gradient_norm(),
        "steps": engine.optimizer_steps(),
        "counts": engine.gather_objects(sum(p.tensor.numel() for p in engine.pieces())),
        "kind": engine._layout.kind,
        "partitions": [
            (p.tensor.numel(), sum(s.length for s in p.slices), len(p.slices))
            for p in engine._layout.partitions
        ],
    }
    engine.close()
    return result


def run(
    server: ForkServer, world_size: int, cases: list[dict[str, Any]], folder: Path
) -> dict[str, dict[str, Any]]:
    """Run cases on this number of ranks; returns rank 0's results by name."""
    path = folder / f"cases{world_size}.json"
    path.write_text(json.dumps(cases))
    text = server.run_engine_cases(path, world_size, folder)
    found = {case["name"]: torch.load(folder / f"{case['name']}.pt") for case in cases}
    found["output"] = {"text": text}
    return found


def meeting_port(path: Path) -> str:
    """Rank 0 looks for a free port at the last moment; one reserved earlier may be gone by then."""
    if os.environ["RANK"] == "0":
        temporary = path.with_suffix(".tmp")
        temporary.write_text(str(free_ports(1)[0]))
        temporary.replace(path)
    while not path.exists():
        time.sleep(0.01)
    return path.read_text()


def main(cases: str) -> int:
    """Run the cases of a file on this rank."""
    folder = Path(cases).parent
    for case in json.loads(Path(cases).read_text()):
        os.environ["MASTER_PORT"] = meeting_port(folder / f"{case['name']}.port")
        result = run_case(case)
        if os.environ["RANK"] == "0":
            torch.save(result, folder / f"{case['name']}.pt")
    return 0
