from __future__ import annotations

from pathlib import Path

import pytest

from bertds.config.load import load_config
from bertds.errors import ConfigError, DataError
from bertds.system.atomic_files import atomic_path, temporary_name, write_text
from bertds.system.inside import file_inside
from bertds.training.run_folder import RunFolder


@pytest.mark.parametrize("name", ["a", "train/shard_00000.h5", "a b", "ä"])
def test_names_inside_are_paths(tmp_path: Path, name: str) -> None:
    assert file_inside(tmp_path, name, "m: key", DataError) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "a/../../b",
        "/etc/passwd",
        "a//b",
        "a/",
        "a\\b",
        "a\0b",
        "a\nb",
        "~/../x/..",
        None,
        7,
        ["a"],
        "a/./b",
    ],
)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(DataError, match=r"m: key is .*: must be the name of a file inside"):
        file_inside(tmp_path, name, "m: key", DataError)


def test_links_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "folder/real").mkdir(parents=True)
    (tmp_path / "folder/inside").symlink_to("real")
    (tmp_path / "folder/outside").symlink_to(tmp_path)
    (tmp_path / "entry").symlink_to(tmp_path / "folder")
    # The folder itself may be a link: its owner has made it.
    for folder in (tmp_path / "folder", tmp_path / "entry"):
        assert file_inside(folder, "inside/x", "m: key", DataError) == folder / "inside/x"
        with pytest.raises(DataError, match="m: key is 'outside/x': points outside"):
            file_inside(folder, "outside/x", "m: key", DataError)


@pytest.mark.parametrize(
    "name",
    [
        "log.txt",
        "metrics.jsonl",
        ".lock",
        "config.yaml",
        "tokenizer",
        "tokenizer/vocab.txt",
        "checkpoints",
        "checkpoints/latest",
        "samples_rank_00001.jsonl",
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_a_run_writes_through_no_link_in_its_folder(tmp_path: Path, name: str, there: bool) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / name).parent.mkdir(parents=True)
    if there:
        outside.write_text("mine")
    (run / name).symlink_to(outside)
    with pytest.raises(ConfigError, match=f"{name}: is a link to {outside}"):
        RunFolder(load_config({"run": {"dir": str(run)}}), True).open()
    assert outside.exists() == there and not (there and outside.read_text() != "mine")
    assert not list(run.glob("*lock*")) or name == ".lock"


def test_a_folder_that_is_a_link_itself_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    RunFolder(load_config({"run": {"dir": str(tmp_path / "run")}}), True).open().close()
    assert (tmp_path / "disk/log.txt").is_file()


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    temporary_name(tmp_path / "file").symlink_to(outside)
    write_text(tmp_path / "file", "new")
    with atomic_path(tmp_path / "other") as temporary:
        temporary.write_text("new")
    assert outside.read_text() == "mine" and (tmp_path / "file").read_text() == "new"
