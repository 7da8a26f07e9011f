from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import WORDS, tiny_documents
from tests.slurm.conftest import GLOBAL_BATCH
from tests.slurm.lab import Lab
from tests.slurm.runs import history, metrics, samples, train_steps

pytestmark = pytest.mark.slurm

STEPS = 250


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """A MediaWiki dump of 80 articles."""
    pages = []
    for number, document in enumerate(tiny_documents(80, seed=3)):
        sentences = [" ".join(words).capitalize() + " and so on." for words in document]
        pages.append(
            f"<page><title>Article {number}</title><ns>0</ns><id>{number}</id><revision><id>1</id>"
            f"<text>{' '.join(sentences)}</text></revision></page>"
        )
    path = tmp_path / "dump.xml"
    path.write_text(
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" '
        'xml:lang="en"><siteinfo><sitename>Test</sitename><namespaces>'
        '<namespace key="0" case="first-letter" /></namespaces></siteinfo>'
        + "\n".join(pages)
        + "</mediawiki>"
    )
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "and", "so", "on", ".", *WORDS]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
    return path


def disturbances(lab: Lab, job: str, chance: random.Random) -> dict[str, Callable[[], object]]:
    """The ways in which a job is interrupted on a cluster."""
    return {
        "requeued": lambda: lab.run("scontrol", "requeue", job),
        "time limit": lambda: lab.run("scancel", "--batch", "--signal=USR1", job),
        "user's signal": lambda: lab.run("scancel", "--signal=USR1", job),
        "more important job": lambda: lab.sbatch(
            "--partition=main", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
        ),
        "crash": lambda: lab.kill_rank(chance.choice(["node1", "node2"])),
    }


@pytest.mark.timeout(1800)
def test_ten_preemptions_between_a_dump_and_a_model(
    lab: Lab, repository: Path, tmp_path: Path, dump: Path
) -> None:
    work = tmp_path / "work"
    lab.run("scontrol", "update", "nodename=node3", "state=drain", "reason=test")
    lab.variables["OMP_NUM_THREADS"] = "1"
    settings = tmp_path / "site.env"
    long = tmp_path / "long.yaml"
    recipe = re.search(r"BERTDS_PHASE1=(.*)", settings.read_text())
    assert recipe
    text = Path(recipe[1]).read_text()
    long.write_text(
        re.sub("total_steps: .*", f"total_steps: {STEPS}", text) + "run:\n  log_samples: true\n"
    )
    settings.write_text(settings.read_text() + f"BERTDS_PHASE1={long}\nBERTDS_PHASE2={long}\n")

    submitted = lab.run(
        repository / "slurm/pipeline.sh",
        "--work",
        work,
        "--nodes",
        2,
        "--train",
        "--partition=low",
        "--wiki",
        dump,
        "--vocab",
        tmp_path / "vocab.txt",
        "--workers",
        1,
        "--validation-fraction",
        0.1,
    )
    jobs = dict(re.findall(r"^(\w+) +job (\d+)$", submitted, re.MULTILINE))
    assert list(jobs) == ["prep", "phase1", "phase2", "export", "evaluate"]
    ids = list(jobs.values())
    assert f"squeue --jobs={','.join(ids)}" in submitted
    assert f"scancel {' '.join(ids)}" in submitted
    assert lab.wait(jobs["prep"])["ExitCode"] == "0:0", lab.log(jobs["prep"])

    chance = random.Random(5)
    kinds = ["requeued", "time limit", "user's signal", "more important job", "crash"]
    for phase in ("phase1", "phase2"):
        job, run = jobs[phase], work / phase
        chance.shuffle(kinds)
        for kind in kinds:
            lab.until_steps(job, run)
            before = lab.restarts(job)
            time.sleep(chance.random() * 0.3)
            disturbances(lab, job, chance)[kind]()
            lab.until_restarted(job, before + 1, timeout=300)
            waiting = {lab.state(later) for later in ids[ids.index(job) + 1 :]}
            assert waiting == {"PENDING"}, (kind, waiting)
        ended = lab.wait(job)
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), lab.log(job)
        # (A job that went on its own may be preempted once more when its grace time is over.)
        assert int(ended["Restarts"]) >= 5

        # Nothing lost, nothing twice: each step once, with a whole batch of samples of its own.
        assert train_steps(run) == list(range(1, STEPS + 1))
        assert metrics(run)[-1]["split"] == "validation"
        numbers = samples(run)
        assert list(numbers) == list(range(1, STEPS + 1))
        assert {len(batch) for batch in numbers.values()} == {GLOBAL_BATCH}
        assert sum(len(batch) for batch in numbers.values()) == len(set().union(*numbers.values()))
        assert sum(" start: " in line for line in history(run)) >= 6

    for part in ("export", "evaluate"):
        assert lab.wait(jobs[part])["ExitCode"] == "0:0", lab.log(jobs[part])
    assert (work / "model" / "model.safetensors").is_file()
    scores = json.loads((work / "scores.json").read_text())
    assert 0 < scores["mlm_loss"] < 5
    lab.run("scontrol", "update", "nodename=node3", "state=resume")

    # Submitted again, it repeats nothing.
    before = (work / "phase2" / "metrics.jsonl").read_bytes()
    again = lab.run(
        repository / "slurm/pipeline.sh", "--work", work, "--nodes", 2, "--train", "--partition=low"
    )
    jobs = dict(re.findall(r"^(\w+) +job (\d+)$", again, re.MULTILINE))
    assert lab.wait(jobs["phase2"])["JobState"] == "COMPLETED"
    lab.run("scancel", jobs["export"], jobs["evaluate"])
    assert (work / "phase2" / "metrics.jsonl").read_bytes() == before
