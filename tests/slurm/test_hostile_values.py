"""Values from files and users that would have a batch script run, or write to, something else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CLEAN = ("SLURM", "SBATCH", "BERTDS", "MASTER", "OMP_", "RANK", "WORLD")


@pytest.fixture
def shell(repository: Path, tmp_path: Path):
    """Return shell(script): run it after common.sh, with a run folder and scontrol made up."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, answer in (("scontrol", "JobState=RUNNING Restarts=0 x"), ("python", "")):
        (commands / name).write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$0 $*" >> {tmp_path}/called\necho " {answer}"\n'
        )
        (commands / name).chmod(0o755)
    (tmp_path / "run/slurm/exits").mkdir(parents=True)
    (tmp_path / "run/checkpoints").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(CLEAN)}

    def run(script: str, *arguments: str, **variables: str):
        return subprocess.run(
            ["bash", "-uc", f'. "{repository}/slurm/common.sh"\n{script}', "test", *arguments],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            timeout=30,
            env={
                **environment,
                "BERTDS_SITE": "/dev/null",
                "RUN": str(tmp_path / "run"),
                "BERTDS_EXITS": str(tmp_path / "run/slurm/exits"),
                "SLURM_JOB_ID": "7",
                "SLURM_JOB_NODELIST": "n1",
                "PATH": f"{commands}:{os.environ['PATH']}",
                **variables,
            },
        )

    return run


def exploit(marker: Path) -> str:
    """Text that touches the marker where bash calculates with it."""
    return f"a[$(touch${{IFS}}{marker})]"


@pytest.mark.parametrize(
    "file", ["slurm/crashes", "slurm/exits/rank_0", "slurm/job", "checkpoints/latest"]
)
@pytest.mark.parametrize("function", ["crashed test", "decide 1", "open_run"])
def test_text_of_a_run_folder_is_never_executed(
    shell, tmp_path: Path, file: str, function: str
) -> None:
    marker = tmp_path / "marker"
    text = exploit(marker)
    (tmp_path / "run/slurm/crashes").write_text("1 none\n")
    (tmp_path / "run" / file).write_text(f"{text} none\n")
    answer = shell(function)
    assert not marker.exists()
    assert answer.returncode in (0, 1) and text not in answer.stderr
    called = (tmp_path / "called").read_text() if (tmp_path / "called").exists() else ""
    assert "marker" not in called  # nor handed on as a job's number


def test_an_invalid_count_starts_at_zero(shell, tmp_path: Path) -> None:
    (tmp_path / "run/slurm/crashes").write_text("lots none\n")
    shell("crashed test")
    assert (tmp_path / "run/slurm/crashes").read_text() == "1 none\n"
    (tmp_path / "run/slurm/crashes").write_text("2 none\n")
    shell("crashed test")
    assert (tmp_path / "run/slurm/crashes").read_text() == "3 none\n"


@pytest.mark.parametrize(
    "name",
    [
        "SLURM_JOB_ID",
        "SLURM_JOB_NUM_NODES",
        "SLURM_NTASKS",
        "SLURM_GPUS_ON_NODE",
        "SLURM_JOB_CPUS_PER_NODE",
        "SLURM_NTASKS_PER_NODE",
        "BERTDS_RANKS_PER_NODE",
        "OMP_NUM_THREADS",
    ],
)
def test_a_setting_that_is_not_a_number_is_refused(shell, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    given = {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", name: exploit(marker)}
    if name == "SLURM_NTASKS_PER_NODE":
        del given["SLURM_NTASKS"]
    answer = shell("make_plan", **given)
    assert not marker.exists()
    assert answer.returncode == 2 and "must be a whole number" in answer.stderr, answer.stderr


def test_links_in_a_run_folder_are_not_written_through(shell, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "run/slurm/history").symlink_to(outside)
    answer = shell("open_run && note hello")
    assert answer.returncode == 2 and "slurm/history: is a link" in answer.stderr
    assert outside.read_text() == "mine"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["notes.txt"], "notes.txt"),
        (["slurm/mine.sh", "phase1/config.yaml"], "phase1/config.yaml"),
        (["slurm-17.out", "logs/1.log", "log.txt", "STOP", ".lock"], ""),
        (["environment.json", "notes.txt"], ""),
        (["checkpoints/step_00000100/manifest.json", "notes.txt"], ""),
        (["slurm/job", "notes.txt"], ""),
    ],
)
def test_a_folder_of_other_files_does_not_become_a_run_folder(
    shell, tmp_path: Path, names: list[str], found: str
) -> None:
    run = tmp_path / "my files"
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("7")
    answer = shell("open_run", RUN=str(run))
    if found:
        assert answer.returncode == 2 and not (run / "slurm/job").exists()
        assert answer.stderr == (
            f"bertds: error: run.dir={run}: this folder is not a run and contains other files "
            f"({found}); set run.dir to a new or an empty folder\n"
        )
    else:
        assert answer.returncode == 0 and (run / "slurm/job").read_text() == "7\n", answer.stderr


def test_a_message_moves_no_cursor(shell) -> None:
    answer = shell('refuse "BERTDS_CONTAINER=$1"', "\x1b[2J\nbertds: done")
    assert answer.stderr == "bertds: error: BERTDS_CONTAINER=?[2J?bertds: done\n"


def preparation(shell, repository: Path, tmp_path: Path, line: str):
    """What slurm/data_prep.sh --from would start for a line."""
    corpora = tmp_path / "corpora.txt"
    corpora.write_text(line + "\n")
    text = (repository / "slurm/data_prep.sh").read_text()
    begin, end = text.index('if [ "${1:-}" = --from ]'), text.index("one_node prep")
    script = text[begin:end] + "printf '<%s>' \"$@\""
    return shell(script, "--from", "corpora.txt", SLURM_ARRAY_TASK_ID="1")


def test_lines_of_a_corpora_file_are_arguments(shell, repository: Path, tmp_path: Path) -> None:
    for name in ("one.xml", "two.xml"):
        (tmp_path / name).write_text("")
    line = """--wiki *.xml --books "my books" 'it''s' --out data/a;b&c --none no*"""
    answer = preparation(shell, repository, tmp_path, line)
    assert answer.stdout == (
        "<--wiki><one.xml><two.xml><--books><my books><its><--out><data/a;b&c><--none><no*>"
    ), answer.stderr


@pytest.mark.parametrize(
    "attack",
    [
        "$(touch marker)",
        "`touch marker`",
        "; touch marker",
        "> marker",
        "| tee marker",
        "'unclosed",
    ],
)
def test_no_line_of_a_corpora_file_is_executed(
    shell, repository, tmp_path: Path, attack: str
) -> None:
    answer = preparation(shell, repository, tmp_path, f"--out data {attack}")
    assert not (tmp_path / "marker").exists()
    if attack[0] in "$`'":
        assert answer.returncode == 2 and "corpora.txt, line 1" in answer.stderr
