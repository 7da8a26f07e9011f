"""Starts the ranks of a small training run as a launcher would, each with its own output file."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# Runs several training commands one after the other in the same processes: the imports cost more
# than the training.
WORKER = """
import json, os, sys
commands, ports = json.loads(sys.argv[1]), json.loads(sys.argv[2])
from bertds.train import entry
codes = []
for command, port in zip(commands, ports):
    os.environ["MASTER_PORT"] = str(port)
    codes.append(entry(command))
print("CODES", json.dumps(codes), flush=True)
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]
    finally:
        for probe in sockets:
            probe.close()


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "BERTDS_LAUNCHER": str(os.getpid()),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONPATH": str(REPOSITORY),
    }


def start_ranks(
    world_size: int, commands: list[list[str]], output: Path
) -> list[subprocess.Popen[str]]:
    """Start the ranks, each in a process group of its own; their output goes to files."""
    ports = free_ports(len(commands))
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(commands), json.dumps(ports)],
            env=rank_environment(rank, world_size, ports[0]),
            text=True,
            start_new_session=True,
            stdout=open(output / f"rank{rank}.txt", "w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(world_size)
    ]


def run_ranks(world_size: int, commands: list[list[str]], timeout: float = 240) -> list[int]:
    """Run training commands on several ranks; return rank 0's exit codes, one a command."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = start_ranks(world_size, commands, Path(folder))
        try:
            for process in ranks:
                process.wait(timeout)
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
        texts = [(Path(folder) / f"rank{rank}.txt").read_text() for rank in range(world_size)]
    for line in texts[0].splitlines():
        if line.startswith("CODES "):
            return json.loads(line.removeprefix("CODES "))
    raise AssertionError("no exit codes from rank 0:\n" + "\n----\n".join(texts))
