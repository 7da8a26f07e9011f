from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.data.formats.manifest import Manifest
from bertds.errors import DataError
from data_prep.build_wiki_books import main
from data_prep.document import Document, SourceFile
from data_prep.sources import READERS, file_units
from data_prep.sources.hub import find_hub

pyarrow = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")

CARD = """---
license:
- cc-by-sa-3.0
- gfdl
configs:
- config_name: 20231101.en
  data_files:
  - split: train
    path: 20231101.en/train-*
- config_name: 20231101.simple
  data_files:
  - split: train
    path: 20231101.simple/train-*
---
# Wikimedia Wikipedia
"""


@pytest.fixture(scope="module")
def wikipedia(tmp_path_factory: pytest.TempPathFactory, made: SimpleNamespace) -> Path:
    """A folder as ``hf download wikimedia/wikipedia --repo-type dataset`` leaves it."""
    from pyarrow import parquet

    folder = tmp_path_factory.mktemp("hub") / "wikipedia"
    rng = random.Random(8)
    for config, files in (("20231101.en", 3), ("20231101.simple", 1)):
        (folder / config).mkdir(parents=True)
        for number in range(files):
            rows = [
                {
                    "id": f"{number}{i}",
                    "url": "https://x",
                    "title": f"{config} {number} {i}",
                    "text": f"{made.article(rng)}\n\nReferences",
                }
                for i in range(12)
            ]
            parquet.write_table(
                pyarrow.Table.from_pylist(rows),
                folder / config / f"train-{number:05d}-of-{files:05d}.parquet",
                row_group_size=5,
            )
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("unit_bytes", [1, 4000, 1 << 20])
def test_the_documents_are_those_that_datasets_streams(wikipedia: Path, unit_bytes: int) -> None:
    files = find_hub(f"{wikipedia}:20231101.en", "train", "text")
    assert [f.name for f in files] == [
        f"20231101.en/train-{i:05d}-of-00003.parquet" for i in range(3)
    ]
    assert {f.source for f in files} == {"hf:wikipedia:20231101.en"}
    assert {f.licence for f in files} == {"cc-by-sa-3.0, gfdl"}
    units = [unit for file in files for unit in file_units(file, unit_bytes)]
    assert len(units) == {1: 9, 4000: len(units), 1 << 20: 3}[unit_bytes]
    found = [d for unit in units for d in READERS[unit.reader](unit)]
    rows = list(datasets.load_dataset(str(wikipedia), "20231101.en", split="train", streaming=True))
    assert [d.title for d in found] == [row["title"] for row in rows]
    for document, row in zip(found, rows, strict=True):
        assert document.text.split() == row["text"].split()


def test_other_formats_are_streamed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        lines = [{"body": f"{split} {i}.", "title": str(i)} for i in range(3)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (file,) = find_hub(str(tmp_path), "test", "body")
    (unit,) = file_units(file, 1)
    assert [(d.title, d.text) for d in READERS["hf"](unit)] == [
        (str(i), f"test {i}.") for i in range(3)
    ]
    (file,) = find_hub(str(tmp_path), "train", "text")
    with pytest.raises(DataError, match=r"no 'text' \(it has: body, title\).*--text-key"):
        list(READERS["hf"](next(file_units(file, 1))))
    with pytest.raises(DataError, match=r"no split 'dev' \(available: .*train.*\); set --hf-split"):
        find_hub(str(tmp_path), "dev", "body")


def test_a_missing_dataset_is_one_line_with_the_remedy(wikipedia: Path) -> None:
    for given, message in (
        (str(wikipedia / "README.md"), "is a file; use --parquet, --jsonl or --text"),
        (str(wikipedia), r"20231101\.en.*20231101\.simple.*NAME:CONFIG"),
        (f"{wikipedia}:20231101.xx", r"20231101\.xx.*not found.*Available"),
        ("/nowhere/at/all", "no such folder"),
        (
            "wikimedia/wikipedia:20231101.en",
            r"cannot be reached.*hf download wikimedia/wikipedia --repo-type dataset "
            r"--local-dir DIR; then use --hf DIR:20231101\.en",
        ),
    ):
        with pytest.raises(DataError, match=message) as caught:
            find_hub(given, "train", "text")
        assert "\n" not in str(caught.value)
    (file, *_) = find_hub(f"{wikipedia}:20231101.en", "train", "body")
    with pytest.raises(DataError, match="no column 'body'"):
        list(file_units(file, 1))


def test_a_copy_without_its_card_and_the_same_text_as_parquet_give_the_same_shards(
    wikipedia: Path, tmp_path: Path, vocab: Path, made: SimpleNamespace
) -> None:
    copy = tmp_path / "copy"
    (copy / "20231101.en").mkdir(parents=True)
    for file in (wikipedia / "20231101.en").iterdir():
        (copy / "20231101.en" / file.name).write_bytes(file.read_bytes())
    trees = []
    for number, source in enumerate(
        (
            ["--hf", f"{wikipedia}:20231101.en"],
            ["--hf", f"{copy}:20231101.en"],
            ["--parquet", str(wikipedia / "20231101.en")],
        )
    ):
        out = tmp_path / f"out{number}"
        command = [
            *source,
            "--out",
            str(out),
            "--vocab",
            str(vocab),
            "--validation-fraction",
            "0.1",
        ]
        assert main([*command, "--workers", "1"]) == 0
        manifest = Manifest.load(out)
        assert manifest.documents == {"read": 36, "written": 36, "dropped": {}}
        trees.append({k: v for k, v in made.tree(out).items() if k.endswith(".h5")})
    assert trees[0] == trees[1] == trees[2]
    (source_entry,) = Manifest.load(tmp_path / "out0").sources
    assert source_entry["name"] == "hf:wikipedia:20231101.en" and source_entry["kind"] == "hf"


def test_a_failed_look_up_of_a_licence_does_not_stop_the_run(
    wikipedia: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("no network")

    given = f"{wikipedia}:20231101.en"
    assert {file.licence for file in find_hub(given, "train", "text")} == {"cc-by-sa-3.0, gfdl"}
    monkeypatch.setattr("huggingface_hub.DatasetCard", SimpleNamespace(load=fail))
    files = find_hub(given, "train", "text")
    assert len(files) == 3 and {file.licence for file in files} == {""}


def test_a_file_on_the_hub_is_read_in_place_and_named_with_its_revision(
    wikipedia: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file system of fsspec takes the place of the Hub's, which cannot be reached here."""
    fsspec = pytest.importorskip("fsspec")
    from data_prep.sources import file_state, hub

    (local, *_) = find_hub(f"{wikipedia}:20231101.en", "train", "text")
    url = "memory://datasets/wikimedia/wikipedia@b04c8d1/20231101.en/train-0.parquet"
    with fsspec.open(url, "wb") as file:
        file.write(local.path.read_bytes())
    config = SimpleNamespace(data_files={"train": [url]})
    parquet = type("Parquet", (), {"__module__": "datasets.packaged_modules.parquet.parquet"})
    builder = parquet()
    builder.config = config  # type: ignore[attr-defined]
    monkeypatch.setattr(hub, "dataset_builder", lambda *_: builder)
    (remote,) = find_hub("wikimedia/wikipedia:20231101.en", "train", "text")
    assert remote.name == "wikimedia/wikipedia@b04c8d1/20231101.en/train-0.parquet"
    assert remote.source == "hf:wikimedia/wikipedia:20231101.en"
    assert remote.bytes == local.bytes and remote.licence == ""
    units = list(file_units(remote, 1))
    assert file_state(units[0]) == []

    def documents(file: SourceFile) -> list[Document]:
        return [d for u in file_units(file, 1) for d in READERS["hf"](u)]

    assert documents(remote) == documents(local)
    fsspec.filesystem("memory").rm(url)
    with pytest.raises(DataError, match=r"memory://datasets.*cannot be read"):
        list(READERS["hf"](units[0]))
