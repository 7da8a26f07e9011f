"""Damage of every kind to every kind of file that is read: three outcomes, and no others.

A command ends with 0 and the same result, with 0 and what it left out counted, or with 2 and one
line. Never with an unexpected error, never without end, never with other numbers in silence.

    BERTDS_MUTATIONS=2000 python -m pytest -n 0 -s -m slow tests/end_to_end/test_mutations.py

makes more of them, in one to five minutes of CPU time per kind; the seed of each is in the message
of a failure. They run in a forked process: a file that has a library loop or crash, or that takes
a gigabyte, is one failure among the others.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import os
import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from bertds.checkpoint.manifest import digest
from bertds.cli import main
from bertds.config.row_settings import RowSettings
from bertds.data.formats.nvidia_hdf5 import write_instance_file
from bertds.data.formats.padded_columns import join_columns
from bertds.data.formats.token_shards import TokenShard
from bertds.data.samples.flat_rows import build_instances
from bertds.data.vocabulary import load_tokenizer_info
from tests.support.file_damage import BYTES, damage_bytes, damage_json
from tests.support.fork_server import ForkServer
from tests.support.forked_trials import trials
from tests.support.tiny import TINY_JSON, TINY_RECIPE, tiny_documents

COUNT = int(os.environ.get("BERTDS_MUTATIONS", "50"))
TRIAL_SECONDS = 60.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + COUNT)]


class Kind(NamedTuple):
    """One kind of file."""

    file: str
    """The one that is damaged, below the folder."""
    damage: Callable[[Path, random.Random], None]
    command: Callable[[Path], list[str]]
    result: Callable[[Path, str], Any]
    """What must stay the same, from the folder and what was printed; None: anything may come."""
    forge: Callable[[Path], None] | None = None
    """Makes checksums fit again, as a malicious user would; then the numbers may change."""


def evaluate(folder: Path) -> list[str]:
    return ["evaluate", str(folder / "run"), "--data", str(folder / "data"), "--json"]


def evaluate_rows(folder: Path) -> list[str]:
    return [
        "evaluate",
        str(folder / "run"),
        "--data",
        str(folder / "rows.hdf5"),
        "--vocab",
        str(folder / "vocab.txt"),
        "--json",
    ]


def prepare(option: str, name: str, vocabulary: str = "words.txt") -> Callable[[Path], list[str]]:
    return lambda folder: [
        "prep",
        option,
        str(folder / name),
        "--vocab",
        str(folder / vocabulary),
        "--out",
        str(folder / "out"),
        "--workers",
        "1",
        "--validation-fraction",
        "0",
        "--min-tokens",
        "2",
    ]


def scores(folder: Path, printed: str) -> Any:
    found = json.loads(printed)
    return [found["loss"], found["rows"], found["masked"]]


def documents(folder: Path, printed: str) -> Any:
    """Each document that was read is there or a counted drop; a shorter file has fewer."""
    found = json.loads((folder / "out/manifest.json").read_text())
    counts = found["documents"]
    assert counts["read"] == counts["written"] + sum(counts["dropped"].values())
    return None


def state(folder: Path, printed: str) -> Any:
    (found,) = json.loads(printed)
    lines = (folder / "run/metrics.jsonl").read_text(errors="replace").splitlines()
    skipped = sum("ignored (torn or malformed)" in line for line in found["unreadable"])
    assert found["step"] in {*range(7)} or skipped or len(lines) != 7
    return None


def shown(folder: Path, printed: str) -> Any:
    return None


def forge_shard(folder: Path) -> None:
    path = folder / "data/manifest.json"
    manifest = json.loads(path.read_text())
    for shard in manifest["splits"]["validation"]["shards"]:
        data = (folder / "data" / shard["file"]).read_bytes()
        shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))


STEP = "run/checkpoints/step_00000006"
FORGED = ("data/manifest.json", f"{STEP}/manifest.json")


def forge_checkpoint(folder: Path) -> None:
    path = folder / STEP / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        files = [entry for entry in manifest["files"] if (folder / STEP / entry["file"]).is_file()]
        for entry in files:
            data = (folder / STEP / entry["file"]).read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return
    path.write_text(json.dumps({**manifest, "sha256": digest(manifest)}))


def forge_digest(folder: Path) -> None:
    path = folder / STEP / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "sha256": digest(manifest)}))
    except (ValueError, TypeError, RecursionError):
        return


def damage_header(path: Path, chance: random.Random) -> None:
    """The first bytes of a safetensors file: the length of its header, and the header."""
    data = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    head, body = data[:end], data[end:]
    chance.choice(BYTES[:-1])(head, chance)
    path.write_bytes(head + body)


RANK = f"{STEP}/rank_00000.safetensors"
KINDS = {
    "token shard": Kind(
        "data/validation/shard_00000.h5", damage_bytes, evaluate, scores, forge_shard
    ),
    "NVIDIA HDF5": Kind("rows.hdf5", damage_bytes, evaluate_rows, scores),
    "checkpoint header": Kind(RANK, damage_header, evaluate, scores, forge_checkpoint),
    "checkpoint body": Kind(RANK, damage_bytes, evaluate, scores, forge_checkpoint),
    "checkpoint manifest": Kind(
        f"{STEP}/manifest.json", damage_json, evaluate, scores, forge_digest
    ),
    "data manifest": Kind("data/manifest.json", damage_json, evaluate, scores),
    "vocabulary": Kind("vocab.txt", damage_bytes, evaluate_rows, scores),
    "metrics": Kind(
        "run/metrics.jsonl",
        damage_bytes,
        lambda folder: ["status", str(folder / "run"), "--json"],
        state,
    ),
    "environment": Kind(
        "run/environment.json",
        damage_json,
        lambda folder: ["status", str(folder / "run"), "--json"],
        state,
    ),
    "run recipe": Kind(
        "run/config.yaml",
        damage_bytes,
        lambda folder: ["status", str(folder / "run"), "--json"],
        shown,
    ),
    "recipe": Kind(
        "tiny.yaml",
        damage_bytes,
        lambda folder: ["config", "show", str(folder / "tiny.yaml")],
        shown,
    ),
    "DeepSpeed JSON": Kind(
        "tiny.json",
        damage_json,
        lambda folder: [
            "plan",
            "--config",
            str(folder / "tiny.yaml"),
            "--deepspeed_config",
            str(folder / "tiny.json"),
            "--gpus",
            "1",
        ],
        shown,
    ),
    "wiki dump": Kind("dump.xml", damage_bytes, prepare("--wiki", "dump.xml"), documents),
    "packed dump": Kind("dump.xml.bz2", damage_bytes, prepare("--wiki", "dump.xml.bz2"), documents),
    "JSON lines": Kind("lines.jsonl", damage_bytes, prepare("--jsonl", "lines.jsonl"), documents),
    "tokenizer.json": Kind(
        "tokenizer.json",
        damage_json,
        prepare("--jsonl", "lines.jsonl", vocabulary="tokenizer.json"),
        documents,
    ),
    "Parquet": Kind("rows.parquet", damage_bytes, prepare("--parquet", "rows.parquet"), documents),
}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
    fork_server: ForkServer,
    tiny_data: Path,
    tiny_vocab: Path,
) -> Path:
    """A folder with one whole file of each kind, and a run of six steps."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(tiny_data, folder / "data")
    shutil.copy(tiny_vocab, folder / "vocab.txt")
    (folder / "tiny.yaml").write_text(TINY_RECIPE)
    (folder / "tiny.json").write_text(TINY_JSON)
    command = [
        "--deepspeed_config",
        str(folder / "tiny.json"),
        "--config",
        str(folder / "tiny.yaml"),
        "--set",
        f"run.dir={folder / 'run'}",
        f"data.path={folder / 'data'}",
    ]
    assert fork_server.run(command, output=folder)[0] == 0
    _write_rows(folder)
    _write_sources(folder)
    return folder


def _write_rows(folder: Path) -> None:
    shape = {"sequence_length": 32, "max_predictions": 5}
    tokenizer = load_tokenizer_info(folder / "vocab.txt", True)
    shard = TokenShard.open(folder / "data/validation/shard_00000.h5")
    chunks = build_instances([shard], 0, RowSettings(pairs="nsp", **shape), 1, tokenizer=tokenizer)
    write_instance_file(folder / "rows.hdf5", join_columns(chunks))


LETTERS = str.maketrans("0123456789", "abcdefghij")
"""A wiki's line of digits is no prose."""


def _write_sources(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = [
        " ".join(" ".join(words).capitalize() + "." for words in document).translate(LETTERS)
        for document in tiny_documents(30, seed=3)
    ]
    words = sorted({word.lower() for text in texts for word in text.replace(".", " ").split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "."]
    (folder / "words.txt").write_text("\n".join([*special, *words]) + "\n")
    _write_tokenizer(folder / "tokenizer.json", [*special, *words])
    pages = "".join(
        f"<page><title>T{n}</title><ns>0</ns><revision><text>{text}</text></revision></page>\n"
        for n, text in enumerate(texts)
    )
    dump = f"<mediawiki>\n{pages}</mediawiki>\n".encode()
    (folder / "dump.xml").write_bytes(dump)
    (folder / "dump.xml.bz2").write_bytes(bz2.compress(dump))
    (folder / "lines.jsonl").write_text(
        "".join(json.dumps({"title": str(n), "text": text}) + "\n" for n, text in enumerate(texts))
    )
    table = pyarrow.table({"title": list(map(str, range(30))), "text": texts})
    parquet.write_table(table, folder / "rows.parquet")


def _write_tokenizer(path: Path, tokens: list[str]) -> None:
    from tokenizers import AddedToken, BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer({token: n for n, token in enumerate(tokens)})
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens[:5]])
    tokenizer.save(str(path))


def outcome(folder: Path, kind: Kind, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    """Run the command: its exit code, and the result or what it said."""
    capsys.readouterr()
    try:
        code = main(kind.command(folder))
    except SystemExit as error:  # argparse
        code = int(error.code or 0)
    printed = capsys.readouterr()
    if code == 0:
        return code, kind.result(folder, printed.out)
    said = [line for line in printed.err.splitlines() if line.startswith("bertds: ")]
    return code, said[-1] if said else printed.err


@pytest.mark.parametrize("name", KINDS)
def test_damage_has_three_outcomes(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    kind = KINDS[name]
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    code, expected = outcome(folder, kind, capsys)
    assert code == 0, expected

    def trial(seed: int) -> tuple[int, Any, bool]:
        for file in {kind.file, *FORGED}:
            shutil.copyfile(whole / file, folder / file)
        shutil.rmtree(folder / "out", ignore_errors=True)
        chance = random.Random(f"{name} {seed}")
        kind.damage(folder / kind.file, chance)
        forged = kind.forge is not None and seed % 2 == 1
        if forged:
            kind.forge(folder)
        # Drawing the page of a preparation takes ten times as long as all the rest.
        with patch("data_prep.run_stages.offer_report") if seed % 25 else nullcontext():
            return *outcome(folder, kind, capsys), forged

    odd = []
    codes: Counter[int] = Counter()
    longest = total = 0.0
    for seed, result, fault, seconds in trials(trial, COUNT, TRIAL_SECONDS):
        longest, total = max(longest, seconds), total + seconds
        code, found, forged = result or (None, fault, False)
        codes[code] += 1
        fine = code == 0 and (forged or found == expected)
        if fault or (not fine and not (code == 2 and found.startswith("bertds: error: "))):
            text = str(found)[-300:]
            odd.append(f"seed {seed}{', forged' if forged else ''}: exit {code}, {text}")
    print(f"{name}: {dict(codes)}, {total:.0f} s of CPU time, {longest:.2f} s at most")
    assert not odd, f"{len(odd)} of {COUNT}:\n" + "\n".join(odd[:10])


def test_trials_that_loop_crash_raise_or_grow_are_reported_and_the_others_run() -> None:
    def trial(number: int) -> int:
        if number == 1:
            re.match(r"(a?){40}a{40}", "a" * 40)  # years in C code that lets no signal through
        elif number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        elif number == 3:
            raise ValueError("odd")
        elif number == 4:
            bytearray(100 << 20)[:] = b"x" * (100 << 20)
        return number * 10

    faults = ("", "no result within 2 s", "exit code -9", "ValueError: odd", "took ", "")
    found = list(trials(trial, 6, 2.0, growth_kib=50 << 10))
    assert [t.number for t in found] == [*range(6)]
    assert [t.result for t in found if not t.fault] == [0, 50]
    for one, fault in zip(found, faults, strict=True):
        assert fault in one.fault and bool(fault) == bool(one.fault), one
