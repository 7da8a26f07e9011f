"""Losses and shard bytes of a fixed-seed pipeline, to check that refactoring changed nothing.

``python -m tests.end_to_end.unchanged`` prints the figures of this tree. With ``--exact REVISION``
it also works them out for another revision on this machine, and fails unless both are equal bit
for bit. Only what users call is used (``bertds.train.entry`` and ``build_wiki_books.py``), so any
revision can be asked, whatever its modules are called.

unchanged.json holds the figures of the revision before the modules moved into packages. The test
compares shards with it by hash, and losses to 1e-5: another processor adds in another order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.ranks import REPOSITORY, free_ports, rank_environment
from tests.support.tiny import TINY_JSON, TINY_RECIPE, tiny_documents, write_tiny_vocab

STORED = Path(__file__).with_name("unchanged.json")

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


def figures(root: Path, folder: Path) -> dict[str, Any]:
    """Prepare and train with the code at ``root``, in an empty folder."""
    shards = _prepare(root, folder)
    commands = _commands(folder)
    for processes, two_phases in commands.items():
        _train(root, processes, two_phases)
    return {
        "shards": shards,
        "losses": {
            f"phase {phase}, {processes} processes": _losses(folder / f"{processes}_{phase}")
            for processes in commands
            for phase in (1, 2)
        },
    }


def _prepare(root: Path, folder: Path) -> dict[str, str]:
    """Token shards and rows as NVIDIA's HDF5; returns the SHA-256 of every file of numbers."""
    vocabulary = write_tiny_vocab(folder / "vocab.txt")
    documents = tiny_documents(60, seed=0)
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join("\n".join(" ".join(s) + "." for s in d) + "\n" for d in documents))
    subprocess.run(
        [
            sys.executable,
            "data_prep/build_wiki_books.py",
            "--text",
            str(corpus),
            "--vocab",
            str(vocabulary),
            "--out",
            str(folder / "data"),
            "--workers",
            "1",
            "--validation-fraction",
            "0.1",
            "--instances",
            "32:5",
            "--dupe-factor",
            "2",
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
        capture_output=True,
    )
    return {
        path.relative_to(folder / "data").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "data").rglob("*"))
        if path.suffix in (".h5", ".hdf5")
    }


def _commands(folder: Path) -> dict[int, list[list[str]]]:
    """The training commands of both phases, by the number of processes."""
    recipe, deepspeed = folder / "tiny.yaml", folder / "tiny.json"
    recipe.write_text(TINY_RECIPE)
    lamb = TINY_JSON.replace('"AdamW"', '"Lamb"')
    deepspeed.write_text(lamb.replace('"optimizer"', '"zero_optimization":{"stage":1},"optimizer"'))

    def command(processes: int, phase: int, *assignments: str) -> list[str]:
        return [
            "--deepspeed",
            "--deepspeed_config",
            str(deepspeed),
            "--config",
            str(recipe),
            "--set",
            f"run.dir={folder / f'{processes}_{phase}'}",
            f"data.path={folder / 'data'}",
            "model.hidden_dropout_prob=0.1",
            *assignments,
        ]

    second = ("data.sequence_length=64", "init.optimizer_state=moments")
    return {
        processes: [
            command(processes, 1),
            command(processes, 2, *second, f"init.from={folder / f'{processes}_1'}"),
        ]
        for processes in (1, 2)
    }


def _train(root: Path, processes: int, commands: list[list[str]]) -> None:
    ports = free_ports(len(commands))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(commands), json.dumps(ports)],
            cwd=root,
            env={**rank_environment(rank, processes, ports[0]), "PYTHONPATH": str(root)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(processes)
    ]
    texts = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert all("CODES [0, 0]" in text for text in texts), "\n----\n".join(texts)


def _losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "split" not in line]


def _at_revision(revision: str, folder: Path) -> dict[str, Any]:
    root = folder / "clone"
    subprocess.run(["git", "clone", "-q", "--no-checkout", str(REPOSITORY), str(root)], check=True)
    subprocess.run(["git", "-C", str(root), "checkout", "-q", revision], check=True)
    (folder / "work").mkdir()
    return figures(root, folder / "work")


def main() -> int:
    """Print this tree's figures, and compare them with a revision's. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exact", metavar="REVISION", help="compare with this one, bit for bit")
    revision = parser.parse_args().exact
    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
        found = figures(REPOSITORY, Path(here))
        print(json.dumps(found, indent=1))
        if revision is None:
            return 0
        same = found == _at_revision(revision, Path(there))
    print(f"{'equal to' if same else 'NOT equal to'} {revision}", file=sys.stderr)
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
