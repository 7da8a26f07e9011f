from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.data.formats.manifest import Manifest
from bertds.system.folder_lock import FolderLock
from bertds.system.run_command import guarded
from data_prep.build_wiki_books import main
from data_prep.stages import instances, markers, shuffle, tokenise
from data_prep.workers.pool import Workers
from tests.end_to_end.soak.kill_preparation import kill_often
from tests.support.fault_injection import Killed
from tests.support.prep_options import WITH_ROWS, wiki_options

arguments = partial(wiki_options, settings=WITH_ROWS)


@pytest.fixture(scope="module")
def wiki(tmp_path_factory: pytest.TempPathFactory, made: SimpleNamespace) -> Path:
    """Eight dumps, so that there are several units."""
    rng = random.Random(2)
    folder = tmp_path_factory.mktemp("dumps")
    for number in range(8):
        pages = [made.page(f"P{number} {i}", made.article(rng)) for i in range(12)]
        (folder / f"dump{number}.xml").write_bytes(made.dump(pages))
    return folder


@pytest.fixture(scope="module")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory, wiki: Path, vocab: Path, made: SimpleNamespace
) -> dict[str, str]:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert main(arguments(out, wiki, vocab)) == 0
    return made.tree(out)


@pytest.mark.parametrize("after", [0, 1, 5, 8, 9, 12, 14, 20])
def test_stopped_after_any_marker_only_the_rest_is_done(
    tmp_path: Path,
    wiki: Path,
    vocab: Path,
    made: SimpleNamespace,
    unbroken: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    written: list[Path] = []

    def stop_after(marker: Path, *rest: object) -> object:
        if len(written) == after:
            raise Killed
        written.append(marker)
        return markers.write_marker(marker, *rest)  # type: ignore[arg-type]

    modules = (tokenise, shuffle, instances)
    with monkeypatch.context() as patch:
        for module in modules:
            patch.setattr(module, "write_marker", stop_after)
        with pytest.raises(Killed):
            main(arguments(tmp_path / "out", wiki, vocab))
    assert not (tmp_path / "out" / "manifest.json").exists()
    first = list(written)

    def remember(marker: Path, *rest: object) -> object:
        written.append(marker)
        return markers.write_marker(marker, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        for module in modules:
            patch.setattr(module, "write_marker", remember)
        assert main(arguments(tmp_path / "out", wiki, vocab)) == 0
    assert made.tree(tmp_path / "out") == unbroken
    assert len(written) == len(set(written)) and len(first) == after  # nothing was done twice


@pytest.mark.parametrize("value", ["cache", "nanotoken"])
def test_a_preparation_of_an_earlier_version_that_names_its_tokeniser_is_resumed(
    tmp_path: Path,
    wiki: Path,
    vocab: Path,
    made: SimpleNamespace,
    unbroken: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    value: str,
) -> None:
    out = tmp_path / "out"

    def stop(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shuffle, "write_marker", stop)
        with pytest.raises(Killed):
            main(arguments(out, wiki, vocab))
    plan = out / ".work" / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "tokeniser": value}))
    with monkeypatch.context() as patch:
        patch.setattr(tokenise, "write_marker", stop)  # its parts are used as they are
        assert main(arguments(out, wiki, vocab)) == 0
    assert made.tree(out) == unbroken


def soaked(wiki: Path, vocab: Path) -> list[str]:
    """Arguments without ``--out``, for two workers."""
    given = arguments(Path("out"), wiki, vocab, "--workers", "2")
    at = given.index("--out")
    return given[:at] + given[at + 2 :]


@pytest.mark.slow
def test_killed_at_random_moments_the_result_is_the_same(
    tmp_path: Path, wiki: Path, vocab: Path, unbroken: dict[str, str]
) -> None:
    kill_often(2, tmp_path / "out", soaked(wiki, vocab), unbroken, seed=2)


@pytest.mark.slow
def test_killed_fifty_times_the_result_is_the_same(
    tmp_path: Path, wiki: Path, vocab: Path, unbroken: dict[str, str]
) -> None:
    kill_often(50, tmp_path / "out", soaked(wiki, vocab), unbroken, seed=50)


def fails(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run, expect one line and this exit code; return the line."""
    assert guarded(main, argv) == code
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("bertds: error")]
    assert len(lines) == 1
    return lines[0]


def test_bad_input_is_one_line_and_leaves_nothing_that_looks_complete(
    tmp_path: Path,
    wiki: Path,
    vocab: Path,
    made: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    dump = (wiki / "dump0.xml").read_bytes()
    (tmp_path / "cut.xml").write_bytes(dump[: len(dump) // 2])
    (tmp_path / "page.xml").write_bytes(b"<!DOCTYPE html><title>404</title>")
    (tmp_path / "feed.xml").write_bytes(b"<rss></rss>")
    assert "cut.xml: truncated" in fails(arguments(out, tmp_path / "cut.xml", vocab), capsys)
    assert "an HTML page;" in fails(arguments(out, tmp_path / "page.xml", vocab), capsys)
    assert "not a MediaWiki dump" in fails(arguments(out, tmp_path / "feed.xml", vocab), capsys)

    data = made.multistream(dump, 3)
    (tmp_path / "cut.bz2").write_bytes(data[:-40])
    assert "truncated" in fails(arguments(out, tmp_path / "cut.bz2", vocab), capsys)

    tokens = vocab.read_text().split("\n")
    (tmp_path / "v.txt").write_text("\n".join(t for t in tokens if t != "[MASK]"))
    assert "does not contain [MASK]" in fails(arguments(out, wiki, tmp_path / "v.txt"), capsys)
    (tmp_path / "v.txt").write_text("\n".join([*tokens[:-1], "the"]))
    assert "'the' occurs twice" in fails(arguments(out, wiki, tmp_path / "v.txt"), capsys)

    (tmp_path / "empty.txt").write_text(" \n\n \n")
    nothing = ["--text", str(tmp_path / "empty.txt"), "--vocab", str(vocab), "--out"]
    assert "no documents are left; read: 0" in fails([*nothing, str(tmp_path / "o2")], capsys)
    (tmp_path / "empty.txt").write_bytes(b"\xff\xfa and so on.\n\nShort.\n")
    text = "no documents are left; read: 2; dropped: 1 bad_utf8, 1 too_short"
    assert text in fails([*nothing, str(tmp_path / "o6")], capsys)
    train = [*nothing[:2], "--train-vocab", "400", "--out", str(tmp_path / "o5")]
    (tmp_path / "empty.txt").write_bytes(b"\xff\xfa and so on.\n")
    assert "no documents are left; read: 1; dropped: 1 bad_utf8" in fails(train, capsys)
    (tmp_path / "one.txt").write_text("A single document. It has two sentences, and many words.")
    nothing[1] = str(tmp_path / "one.txt")
    assert "only 1 distinct document, but at least 4 are needed to hold out 2" in fails(
        [*nothing, str(tmp_path / "o3")], capsys
    )
    alone = [*nothing, str(tmp_path / "o4"), "--validation-fraction", "0", "--instances", "64:10"]
    assert "single document" in fails(alone, capsys)
    for folder in (out, *(tmp_path / f"o{i}" for i in (2, 3, 4, 5, 6))):
        assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--instances", "128"], "expected S:P"),
        (["--instances", "128:200"], "max_predictions=200"),
        (["--masked-lm-prob", "1.5"], "masked_lm_prob=1.5"),
        (["--validation-fraction", "0.9"], "--validation-fraction 0.9: allowed: 0 to 0.5"),
        (["--shard-tokens", "10"], "--shard-tokens 10"),
        (["--seed", str(2**127)], "allowed: -2^127 to 2^127 - 1"),
        (["--licence", "x"], "--licence x: expected SOURCE=TEXT"),
        (["--licence", "books=MIT"], "--licence books=MIT: no such source; the sources are: wiki"),
        (["--dataset-name", "a/b"], "--dataset-name"),
        (["--workers", "-1"], "--workers -1: allowed: 0"),
        (["--language", "English"], "--language English: allowed: a code"),
    ],
)
def test_impossible_options(
    tmp_path: Path,
    wiki: Path,
    vocab: Path,
    capsys: pytest.CaptureFixture[str],
    option: list[str],
    message: str,
) -> None:
    assert message in fails([*arguments(tmp_path / "o", wiki, vocab), *option], capsys)
    assert not (tmp_path / "o").exists()


def test_folders_in_use_not_writable_or_of_others_are_refused(
    tmp_path: Path, wiki: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with FolderLock(out, "preparation"):
        assert "in use by preparation" in fails(arguments(out, wiki, vocab), capsys)
    (out / "thesis.tex").touch()
    assert "contains thesis.tex" in fails(arguments(out, wiki, vocab), capsys)
    below_a_file = out / "thesis.tex" / "data"
    assert "cannot be written" in fails(arguments(below_a_file, wiki, vocab), capsys)
    if os.geteuid() != 0:
        out.chmod(0o500)
        assert "cannot be written" in fails(arguments(out / "x", wiki, vocab), capsys)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_is_one_line(
    tmp_path: Path,
    wiki: Path,
    vocab: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    def refused(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)  # root, as in CI, may write everywhere
    line = fails(arguments(tmp_path / "out", wiki, vocab), capsys)
    assert line.endswith(f"out: cannot be written ({os.strerror(number)})")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line_and_can_be_resumed(
    tmp_path: Path,
    wiki: Path,
    vocab: Path,
    made: SimpleNamespace,
    unbroken: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    real = shuffle.write_token_shard

    def full(path: Path, *args: object, **kwargs: object) -> object:
        with open("/dev/full", "wb") as file:
            file.write(bytes(10_000))
        raise AssertionError

    monkeypatch.setattr(shuffle, "write_token_shard", full)
    assert "disk is full" in fails(arguments(out, wiki, vocab), capsys, code=1)
    monkeypatch.setattr(shuffle, "write_token_shard", real)
    assert main(arguments(out, wiki, vocab)) == 0
    assert made.tree(out) == unbroken


def test_a_worker_that_dies_is_an_error_and_not_a_hang(
    tmp_path: Path, wiki: Path, vocab: Path, repository: Path
) -> None:
    code = (
        "import os, signal, sys\n"
        "from bertds.system.run_command import guarded\n"
        "from data_prep import run_stages\n"
        "from data_prep.build_wiki_books import main\n"
        "def die(task):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    run_stages.run_stage = die\n"
        "    raise SystemExit(guarded(main, sys.argv[1:]))\n"
    )
    script = tmp_path / "die.py"
    script.write_text(code)
    command = [
        sys.executable,
        str(script),
        *arguments(tmp_path / "o", wiki, vocab),
        "--workers",
        "2",
    ]
    result = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert "a worker process died" in result.stderr and "Traceback" not in result.stderr


def test_an_interrupt_reaches_the_parent_process_but_not_the_workers() -> None:
    """From their first import on; a terminal sends Ctrl-C to all of them."""
    held_back: list[set[signal.Signals]] = []
    with Workers(2) as workers:
        look = partial(signal.pthread_sigmask, signal.SIG_BLOCK)
        workers.run(look, [[], []], held_back.append)
    assert len(held_back) == 2 and all(signal.SIGINT in mask for mask in held_back)
    assert signal.SIGINT not in look([])


def test_a_source_touched_between_two_runs_is_read_again(
    tmp_path: Path, vocab: Path, made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(4)
    wiki = tmp_path / "w.xml"
    pages = [made.page(f"P{i}", made.article(rng)) for i in range(30)]
    wiki.write_bytes(made.dump(pages))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(instances, "write_marker", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            main(arguments(out, wiki, vocab))
    wiki.write_bytes(made.dump(pages[::-1]).replace(b"P3<", b"P4<"))  # as long, another text
    assert main(arguments(out, wiki, vocab)) == 0
    assert main(arguments(tmp_path / "fresh", wiki, vocab)) == 0
    assert made.tree(out) == made.tree(tmp_path / "fresh")


def peak_megabytes(command: list[str]) -> tuple[float, float]:
    """Run a command; return its peak memory, and the CPU seconds that it used."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_maxrss, used.ru_utime + used.ru_stime)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *command], check=True, capture_output=True, text=True
    )
    kilobytes, seconds = result.stdout.split()
    return int(kilobytes) / 1024, float(seconds)


# Fifty megabytes are a line of ten million tokens: ten seconds, and as little memory as any worker.
@pytest.mark.parametrize(
    ("megabytes", "most_memory", "most_seconds"),
    [(3, 275, 12), pytest.param(50, 1000, 12, marks=pytest.mark.slow)],
)
def test_a_giant_single_line_document(
    tmp_path: Path,
    vocab: Path,
    repository: Path,
    megabytes: int,
    most_memory: int,
    most_seconds: int,
) -> None:
    line = ("word " * 199 + "end. ") * (megabytes * 1000)
    text = tmp_path / "giant.txt"
    text.write_text(
        f"{line}\n\n" + "\n\n".join(f"Small document {i} is here too." for i in range(9))
    )
    out = tmp_path / "out"
    script = str(repository / "data_prep" / "build_wiki_books.py")

    def command(source: Path, folder: Path) -> list[str]:
        return [
            sys.executable,
            script,
            "--text",
            str(source),
            "--vocab",
            str(vocab),
            "--out",
            str(folder),
            "--workers",
            "1",
        ]

    if megabytes > 10:  # the compiler has done its work before it counts
        (tmp_path / "small.txt").write_text(text.read_text()[len(line) :])
        peak_megabytes(command(tmp_path / "small.txt", tmp_path / "small"))
    peak, seconds = peak_megabytes(command(text, out))
    manifest = Manifest.load(out)
    assert manifest.documents["written"] == 10
    assert peak < most_memory
    # Linear: what is quadratic takes minutes. (A busy machine's CPU seconds are longer ones.)
    assert seconds < most_seconds


@pytest.mark.slow
def test_peak_memory_is_flat_when_the_input_is_ten_times_as_large(
    tmp_path: Path, vocab: Path, made: SimpleNamespace, repository: Path
) -> None:
    rng = random.Random(1)
    peaks = []
    for times in (1, 10):
        wiki = tmp_path / f"w{times}.xml"
        wiki.write_bytes(
            made.dump([made.page(str(i), made.article(rng, 8)) for i in range(4000 * times)])
        )
        script = str(repository / "data_prep" / "build_wiki_books.py")
        command = [
            sys.executable,
            script,
            *arguments(tmp_path / f"o{times}", wiki, vocab),
            "--shard-tokens",
            "200000",
            "--overwrite",
        ]
        peaks.append(peak_megabytes(command)[0])
    assert peaks[1] < 1.25 * peaks[0], peaks


@pytest.mark.parametrize("contents", ["", "{", "[]", "5", "{}", '{"inputs": "a", "file_bytes": 1}'])
def test_a_damaged_marker_is_no_marker(tmp_path: Path, contents: str) -> None:
    (tmp_path / "part").write_text("x")
    (tmp_path / "part.json").write_text(contents)
    assert markers.read_marker(tmp_path / "part.json", tmp_path / "part", "a") is None
