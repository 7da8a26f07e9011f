"""A run folder with other files in it is refused before anything is written to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bertds.config.load import load_config, to_dict
from bertds.errors import ConfigError
from bertds.training.foreign_files import refuse_foreign_files
from bertds.training.run_folder import RunFolder


def fill(folder: Path, *names: str) -> Path:
    """Make the folder, with an empty file of each name; a name that ends in / is a folder."""
    folder.mkdir()
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("mine")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(p): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["notes.txt"], "(notes.txt)"),
        (["a.py", "b.py", "train.log"], "(a.py and 1 more)"),
        (["phase1/config.yaml", "phase1/environment.json"], "(phase1)"),  # above the run folders
        (["tokenizer/vocab.txt"], "(tokenizer)"),
        (["config.yaml", "deepspeed.json"], "(config.yaml and 1 more)"),  # the user's own recipe
        (["DONE"], "(DONE)"),
        (["logs/1.log", "logs/thesis.tex"], "(logs)"),
    ],
)
def test_a_folder_of_other_files_is_refused_and_unchanged(
    tmp_path: Path, names: list[str], named: str
) -> None:
    run = fill(tmp_path / "my files", *names)
    before = contents(run)
    folder = RunFolder(load_config({"run": {"dir": str(run)}}), True)
    assert not folder.done
    with pytest.raises(ConfigError) as caught:
        folder.open()
    assert f"run.dir={run}: this folder is not a run and contains other files" in str(caught.value)
    assert named in str(caught.value)
    assert "set run.dir to a new or an empty folder" in str(caught.value)
    assert contents(run) == before


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["bertds-phase1-17.log", "slurm-17.out", "nohup.out", "rank_0.err"],
        ["logs/none_x1/attempt_0/0/stdout.log", "logs/empty/"],  # torchrun --log-dir
        ["slurm/job", "slurm/history", "slurm/exits.17.0/", "STOP"],
        [".lock", "log.txt", ".tmp-lock.host.17"],  # killed before it recorded its start
        [".gitkeep", "lost+found/"],
        ["checkpoints/.tmp-step_00000100/rank_00000.safetensors"],  # killed while fetching a copy
        ["checkpoints/step_00000100/manifest.json", "notes.txt"],
        ["environment.json", "notes.txt"],
        ["environment.json", "config.yaml", "deepspeed.json", "log.txt", "tokenizer/vocab.txt"],
    ],
)
def test_a_run_and_what_may_be_there_before_it_are_accepted(
    tmp_path: Path, names: list[str]
) -> None:
    refuse_foreign_files(fill(tmp_path / "run", *names))


def test_settings_recorded_by_a_run_that_was_killed_then_are_accepted(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", "log.txt", "deepspeed.json")
    (run / "config.yaml").write_text(yaml.safe_dump(to_dict(load_config({}))))
    refuse_foreign_files(run)


@pytest.mark.parametrize("name", ["checkpoints", "tokenizer"])
def test_a_file_in_place_of_a_folder_is_found_before_training(tmp_path: Path, name: str) -> None:
    run = fill(tmp_path / "run", "environment.json", name)
    folder = RunFolder(load_config({"run": {"dir": str(run)}}), True)
    with pytest.raises(ConfigError, match=f"{name}: a run needs a folder of this name"):
        folder.open()
    assert not (run / ".lock").exists()


def test_a_missing_folder_is_accepted_and_not_created(tmp_path: Path) -> None:
    refuse_foreign_files(tmp_path / "run")
    assert not (tmp_path / "run").exists()
