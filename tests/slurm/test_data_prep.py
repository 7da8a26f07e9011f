from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.conftest import WORDS, tiny_documents
from tests.slurm.lab import Lab

pytestmark = pytest.mark.slurm


def tree(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def signal(lab: Lab, node: str, name: str) -> None:
    """Send a signal to the preparation on a node."""
    lab.control("on", node, "pkill", f"-{name}", "-f", "^[^ ]*python -m bertds.cli prep")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Eight files of text, large enough to be cut into a few groups of units."""
    folder = tmp_path / "text"
    folder.mkdir()
    documents = [
        "\n".join(" ".join(words).capitalize() + " and so on." for words in document)
        for document in tiny_documents(400, seed=3)
    ]
    chance = random.Random(4)
    for number in range(8):
        text = "\n\n".join(f"{d}\n{number} {chance.random()}" for d in documents)
        (folder / f"{number}.txt").write_text(text * 2)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "and", "so", "on", ".", *WORDS]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
    return folder


@pytest.mark.timeout(600)
def test_an_array_on_two_nodes_gives_the_bytes_of_one_process(
    lab: Lab, repository: Path, tmp_path: Path, corpus: Path
) -> None:
    from data_prep.build_wiki_books import main

    given = [
        "--text",
        str(corpus),
        "--vocab",
        str(tmp_path / "vocab.txt"),
        "--workers",
        "1",
        "--shard-tokens",
        "20000",
        "--instances",
        "64:10",
        "--dupe-factor",
        "2",
    ]
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert main([*given, "--out", str(alone)]) == 0

    lab.run("scontrol", "update", "nodename=node3", "state=drain", "reason=test")
    script = repository / "slurm/data_prep.sh"
    # Three elements for two nodes: the third waits for a node, and nobody waits for the third.
    job = lab.sbatch("--array=1-3", script, *given, "--out", out)
    members = out / ".tasks"
    lab.until(lambda: len([*members.glob("member-*")]) == 2, 120, f"{job}_1")
    for node in ("node1", "node2"):  # so that they are at it while the rest happens
        signal(lab, node, "STOP")
    hosts = {lab.job(f"{job}_{index}")["NodeList"]: index for index in (1, 2)}
    assert sorted(hosts) == ["node1", "node2"]

    # A foreign preparation is refused while they work; exit code 2, not requeued.
    foreign = lab.sbatch(
        "--nodelist=node4", "--partition=gpu", script, *given, "--out", out, "--seed", "6"
    )
    assert lab.wait(foreign)["ExitCode"] == "2:0", lab.log(foreign)
    assert "in use by preparation, task " in lab.log(foreign)

    signal(lab, "node2", "KILL")
    signal(lab, "node1", "CONT")
    lab.until_restarted(f"{job}_{hosts['node2']}", 1, timeout=180)
    ended = [lab.wait(f"{job}_{index}", timeout=300) for index in (1, 2, 3)]
    logs = [lab.log(f"{job}_{index}") for index in (1, 2, 3)]
    assert [one["ExitCode"] for one in ended] == ["0:0"] * 3, logs
    restarts = {index: int(one["Restarts"]) for index, one in enumerate(ended, 1)}
    assert restarts == {hosts["node1"]: 0, hosts["node2"]: 1, 3: 0}, logs
    assert tree(out) == tree(alone)
    lab.run("scontrol", "update", "nodename=node3", "state=resume")
