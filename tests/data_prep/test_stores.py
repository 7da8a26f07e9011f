"""Preparation from URLs and into a store: the bytes of the local run."""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bertds.data.remote.folder import mirror
from bertds.errors import ConfigError, StoreError
from bertds.system import storage
from data_prep.build_wiki_books import main
from data_prep.stages import shuffle
from tests.support.emulators import STORES, bucket
from tests.support.store_server import FAULTS, SECRET, serve

pytest.importorskip("aiohttp")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(storage, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same few hundred documents as text, JSON lines, Parquet and a dump, some packed."""
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path_factory.mktemp("inputs")
    documents = [
        f"Document {n} tells of {n * 7} things.\nThe number {n} is in it, and {n + 1} comes after."
        for n in range(300)
    ]
    (folder / "a.txt").write_text("\n\n".join(documents[:80]) + "\n")
    (folder / "b.txt.gz").write_bytes(gzip.compress("\n\n".join(documents[80:120]).encode()))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents[120:200])
    (folder / "c.jsonl").write_text(lines)
    parquet.write_table(pyarrow.table({"text": documents[200:250]}), folder / "d.parquet")
    pages = "".join(
        f"<page><title>P{n}</title><ns>0</ns><revision><text>{text}</text></revision></page>\n"
        for n, text in enumerate(documents[250:])
    )
    dump = f'<mediawiki version="0.11">\n{pages}</mediawiki>\n'
    (folder / "e.xml.bz2").write_bytes(bz2.compress(dump.encode()))
    return folder


def command(inputs: str, out: object, vocab: Path, *more: str) -> list[str]:
    files = (
        f"--text {inputs}/a.txt {inputs}/b.txt.gz --jsonl {inputs}/c.jsonl"
        f" --parquet {inputs}/d.parquet --wiki {inputs}/e.xml.bz2 --out {out} --vocab {vocab}"
    )
    settings = "--workers 1 --shard-tokens 2000 --validation-fraction 0.05"
    return [*files.split(), *settings.split(), *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def stored(url: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(f"{url}/{name}") for name in storage.list_files(url)}


@pytest.fixture(scope="module")
def local(inputs: Path, tiny_vocab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "out"
    assert main(command(str(inputs), out, tiny_vocab)) == 0
    return out


def test_inputs_are_streamed_through_every_fault(
    inputs: Path, local: Path, tiny_vocab: Path, tmp_path: Path
) -> None:
    """No byte is flipped: nothing vouches for the bytes of an input."""
    with serve(inputs, [fault for fault in FAULTS if fault != "flip"]) as store:
        assert main(command(store.url, tmp_path / "out", tiny_vocab)) == 0
    assert set(store.injected) == set(FAULTS) - {"flip"}
    assert contents(tmp_path / "out") == contents(local)


@pytest.mark.parametrize("kind", STORES)
def test_a_folder_in_a_store_is_an_input_and_the_result_goes_there(
    inputs: Path, local: Path, tiny_vocab: Path, tmp_path: Path, capsys, kind: str
) -> None:
    with bucket(kind, tmp_path / "store") as top:
        url = f"{top}/out"
        for path in inputs.iterdir():
            storage.upload(path, f"{top}/in/{path.name}")
        words = command(f"{top}/in", url, tiny_vocab)
        words[words.index("--workers") + 1] = "2"  # which are forked after the store was opened
        assert main(words) == 0
        assert stored(url) == contents(local)
        assert not list((tmp_path).glob("bertds-prep-*/*"))
        said = capsys.readouterr().err
        assert f"prepared {url}\n" in said and f"{url}/report.html" in said
        assert SECRET not in said and "bertds-prep-" not in said
        assert main(words) == 0
        assert "already prepared with these settings" in capsys.readouterr().err
        storage.remove(f"{url}/train/shard_00001.h5")
        assert main(words) == 0
        assert stored(url) == contents(local)


def test_other_settings_are_refused_and_overwritten_on_demand(
    inputs: Path, local: Path, tiny_vocab: Path, tmp_path: Path
) -> None:
    shutil.copytree(local, tmp_path / "store")
    url = f"file://{tmp_path / 'store'}"
    words = command(str(inputs), url, tiny_vocab, "--seed", "7")
    with pytest.raises(Exception, match="prepared with other settings or sources"):
        main(words)
    assert contents(tmp_path / "store") == contents(local)
    assert main([*words, "--overwrite"]) == 0
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["settings"]["seed"] == 7


def test_after_a_store_failure_the_result_is_invisible_and_the_run_continues(
    inputs: Path, local: Path, tiny_vocab: Path, tmp_path: Path, monkeypatch
) -> None:
    url = f"file://{tmp_path / 'store'}"
    uploaded: list[str] = []

    def upload(path: Path, there: str) -> None:
        if len(uploaded) == 2:
            raise StoreError(f"{there}: down")
        uploaded.append(path.name)
        storage.upload(path, there)

    monkeypatch.setattr(shuffle, "upload", upload)
    with pytest.raises(StoreError):
        main(command(str(inputs), url, tiny_vocab))
    assert not (tmp_path / "store" / "manifest.json").exists() and len(uploaded) == 2
    counted: list[str] = []
    monkeypatch.setattr(
        shuffle, "upload", lambda p, u: (counted.append(p.name), storage.upload(p, u))
    )
    assert main(command(str(inputs), url, tiny_vocab)) == 0
    shards = len([name for name in contents(local) if name.endswith(".h5")])
    assert len(counted) == shards - 2  # what was uploaded is not uploaded again
    assert contents(tmp_path / "store") == contents(local)


KILLED = """
import sys, time
from data_prep.stages import shuffle
real, count = shuffle.upload, 0
def upload(path, url):
    global count
    count += 1
    if count == 2:
        print("here", flush=True)
        time.sleep(60)
    real(path, url)
shuffle.upload = upload
from data_prep.build_wiki_books import main
main(sys.argv[1:])
"""


def test_kill_9_in_the_middle_of_an_upload(
    inputs: Path, local: Path, tiny_vocab: Path, tmp_path: Path
) -> None:
    url = f"file://{tmp_path / 'store'}"
    words = command(str(inputs), url, tiny_vocab, "--work-dir", str(tmp_path / "work"))
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "here\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    time.sleep(0.05)
    assert not (tmp_path / "store" / "manifest.json").exists()
    assert main(words) == 0
    assert contents(tmp_path / "store") == contents(local)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"https://127.0.0.1:9/out?X-Amz-Signature={SECRET}", "a web server cannot be written to"),
        ("hf://datasets/lab/corpus", "upload it in one commit with `hf upload`"),
    ],
)
def test_invalid_output_places_are_refused(
    inputs: Path, tiny_vocab: Path, url: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        main(command(str(inputs), url, tiny_vocab))
    assert SECRET not in str(error.value)


def test_no_signature_is_written_anywhere(inputs: Path, tiny_vocab: Path, tmp_path: Path) -> None:
    with serve(inputs) as store:
        words = [
            "--text",
            f"{store.url}/a.txt?X-Amz-Signature=topsecret0",
            "--out",
            str(tmp_path / "out"),
            "--vocab",
            str(tiny_vocab),
            "--workers",
            "1",
        ]
        assert main(words) == 0
        assert store.queries == {"X-Amz-Signature=topsecret0"}
    assert all(b"topsecret0" not in data for data in contents(tmp_path / "out").values())


def test_a_result_in_a_store_is_read_as_any_other(local: Path, tmp_path: Path) -> None:
    with serve(local) as store:
        folder = mirror(store.url, tmp_path, 5.0)
    assert (folder / "manifest.json").read_bytes() == (local / "manifest.json").read_bytes()
