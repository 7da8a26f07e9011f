"""The guides' commands run as printed, one page after another, in a folder like a fresh clone.

What is changed is added at the end of a command (``smaller``): fewer steps and rows, a small model
in the place of BERT-large. The files that a guide takes from its reader are small pieces of real
ones. What cannot run here is in ``NOT_HERE`` or ``PARSED_ONLY`` with its reason; test_docs.py has
every line of every page read by the parser of its program, and every page in one of the lists.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

import pytest

from bertds import train
from bertds.cli import main as command
from tests.support.guide_files import write_reader_files
from tests.support.printed_commands import Line, commands, ours
from tests.support.store_server import s3

pytestmark = pytest.mark.slow

PREP = ("python", "data_prep/build_wiki_books.py")
ON_NODES = (*PREP, "--wiki", "enwiki.xml.bz2", "--out", "/shared/data", "--vocab", "vocab.txt")
NOT_HERE = {
    ("make",): "installs; tests/project/test_makefile.py has its targets",
    ("pip",): "installs from PyPI",
    ("git", "clone"): "downloads",
    ("hf",): "downloads from the Hub, or uploads to it",
    ("source",): "changes the shell",
    ("nvidia-smi",): "needs a GPU",
    ("pytest",): "tests",
    ("python", "-m", "pytest"): "tests",
    ("python", "benchmarks/filters.py"): "a measurement; tests/benchmarks",
    ("python", "benchmarks/ingredients.py"): "trains for hours",
    ("python", "benchmarks/prep.py"): "a measurement; tests/benchmarks",
    ("python", "benchmarks/prep_rows.py"): "a measurement; tests/benchmarks",
    ("python", "benchmarks/prep_scaling.py"): "a measurement; tests/benchmarks",
    ("python", "tests/end_to_end/soak/kill_preparation.py"): "runs for hours",
    ("nice", "python", "tests/end_to_end/soak/kill.py"): "runs for hours",
    ("bertds", "watch"): "serves until Ctrl-C: tests/report/test_live.py",
    ("bertds", "convert", "ckpt_N.pt"): "a file of DLE's: tests/pretrained/test_convert.py",
    ("sbatch",): "needs Slurm: tests/slurm/test_data_prep.py",
    (*ON_NODES, "--executor", "slurm"): "needs Slurm: tests/slurm/test_data_prep.py",
    (*ON_NODES, "--executor", "ray"): "starts a cluster: tests/data_prep/test_scale_out.py",
}
"""The first words of commands, each a whole word, and why they are not run here."""
PARSED_ONLY = {
    "CONTRIBUTING.md": "make alone",
    "docs/performance.md": "needs a GPU: tests/gpu, tests/benchmarks",
    "docs/slurm.md": "needs Slurm or several machines: tests/slurm",
    "docs/wikitext.md": "a measurement that installs two other programs",
}
"""Pages of which nothing is run here, and why."""
RUN: list[str] = []
"""Pages whose commands, but for NOT_HERE, are run by a test below."""


def runs(*pages: str) -> pytest.MarkDecorator:
    """Mark a test as the one that runs the commands of these pages."""
    RUN.extend(pages)
    return pytest.mark.parametrize("pages", [pages], ids=[Path(pages[0]).stem])


WRITTEN = ("runs", "data", "data_own", "models", "model", "report", "mine")
"""What commands write in the clone, for pages that must begin without it."""
SMALL = """
    model.hidden_size=32 model.num_hidden_layers=2 model.num_attention_heads=2
    model.intermediate_size=64 schedule.total_steps=3 validation.max_samples=8 log.every_steps=1
    deepspeed.train_batch_size=4 deepspeed.train_micro_batch_size_per_gpu=2
""".split()  # noqa: SIM905


def smaller(name: str, words: list[str]) -> list[str]:
    """Add what makes a command quick, in the place of sizes that it prints."""
    small = {setting.split("=")[0] for setting in SMALL}
    if name == "train":
        if "--processes" in words and words[words.index("--processes") + 1] != "2":
            place = words.index("--processes")  # a page's eight GPUs are not here
            words = words[:place] + words[place + 2 :]
            if "--restarts" in words:  # which need processes
                place = words.index("--restarts")
                words = words[:place] + words[place + 2 :]
        return [*(w for w in words if w.split("=")[0] not in small), "--set", *SMALL]
    if name == "init" and "--corpus" not in words:  # it would ask
        return [*words, "--corpus", "books", "--gpu", "cpu", "--yes"]
    if name == "evaluate":
        return words if "--blimp" in words else [*words, "--max-samples", "8"]
    if name == "speedrun":
        words = [w for w in words if w.split("=")[0] not in small]
        more = [w for w in SMALL if not w.startswith("log.")]  # it sets log.every_steps itself
        return [*words, *more, "--data", "data/small", "--target", "100"]
    if name == "plan" and "--calibrate" in words:
        # The trial here ran on a CPU in fp32.
        return [*words, "--gpu", "cpu", "--set", "deepspeed.bf16.enabled=false"]
    if name == "prep" and words[0] != "show":
        words = [word.replace("/shared/", "shared/") for word in words]
        return [*words, "--workers", "1"]
    if name == "finetune":
        quick = {
            "--learning-rate": "1e-3",
            "--epochs": "1",
            "--max-train-rows": "16",
            "--max-dev-rows": "8",
            "--max-length": "64",
        }
        new = [w for k, v in quick.items() if k not in words for w in (k, v)]
        if "--seeds" in words:
            words = [w for w in words if w not in ("3", "4", "5")]
        return [*words, *new]
    return words


def is_not_here(line: Line, exceptions: Iterable[tuple[str, ...]] = NOT_HERE) -> bool:
    """Whether a line begins with the words of an exception."""
    return any(line.words[: len(words)] == words for words in exceptions)


def run(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one printed line in the working directory, and require that it succeeds."""
    if line.words[0] in ("touch", "rm"):
        assert subprocess.run(line.words).returncode == 0
        return
    if line.words[0] == "grep":
        files = [Path(word).read_text().splitlines() for word in line.words[2:4]]
        Path(line.words[5]).write_text("".join(f"{w}\n" for w in files[1] if w not in files[0]))
        return
    found = ours(line.words)
    assert found is not None, f"{line}: neither ours nor in NOT_HERE"
    name, words = found
    if "<<<" in words:
        place = words.index("<<<")
        given = io.BytesIO(words[place + 1].encode() + b"\n")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given))
        words = words[:place]
    words = [
        w
        for word in words
        for w in (sorted(map(str, Path().glob(word))) or [word] if "*" in word else [word])
    ]
    words = smaller(name, words)
    if name == "train":
        code = train.entry(words)
    else:
        try:
            code = command([name, *words])
        except SystemExit as end:
            code = int(end.code or 0)
    assert code == 0, f"{line}: exit code {code}"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's variables, and nothing that depends on the number of GPUs."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def clone(repository: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clone's own folders, and the files that a reader would bring."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("bertds", "ds_configs", "data_prep", "docs", "slurm", "constraints.txt"):
        (root / name).symlink_to(repository / name)
    write_reader_files(root, repository, shared_data)
    return root


def without(clone: Path, folder: Path, names: Collection[str]) -> None:
    """Make ``folder`` like the clone, but for what other pages' commands have written there."""
    for path in clone.iterdir():
        if path.name not in names:
            (folder / path.name).symlink_to(path)


@pytest.fixture
def here(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the clone, without what other pages have written, as the working directory."""
    without(clone, tmp_path, WRITTEN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines_of(repository: Path, *pages: str) -> list[Line]:
    """The commands of pages that are run here; a table's that names one option is left out."""
    found = [line for name in pages for line in commands(repository / name)]
    return [line for line in found if not line.names_an_option and not is_not_here(line)]


@pytest.fixture
def lines(pages: tuple[str, ...], repository: Path) -> list[Line]:
    """The commands of the test's pages."""
    return lines_of(repository, *pages)


@runs("README.md")
def test_readme(lines: list[Line], clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    for line in lines:
        run(line, monkeypatch)
    assert (clone / "models/bert-large/model.safetensors").is_file()
    assert (clone / "report/index.html").is_file()


@runs("docs/tutorial.md", "docs/watching.md", "docs/planning.md", "docs/migrating.md")
def test_tutorial_watching_planning_migrating(
    pages: tuple[str, ...], repository: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tutorial = lines_of(repository, pages[0])
    of_demo = [line for line in tutorial if "demo" in " ".join(line.words)]
    for line in tutorial:
        if line not in of_demo:
            run(line, monkeypatch)
    assert (here / "models/mine/model.safetensors").is_file()
    # The demo's folder, and the runs that other pages name.
    shutil.copytree(here / "runs/phase2", here / "demo/run")
    shutil.copytree(here / "models/mine", here / "demo/model")
    for name in ("adam", "lamb", "trial"):
        shutil.copytree(here / "runs/phase1", here / "runs" / name)
    for line in of_demo + lines_of(repository, *pages[1:]):
        run(line, monkeypatch)


@runs("docs/domain_adaptation.md")
def test_domain_adaptation(lines: list[Line], clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    for line in lines:
        if line.words[1] == "extend":  # two ways to one folder
            shutil.rmtree(line.words[3], ignore_errors=True)
        run(line, monkeypatch)


@runs("docs/finetuning.md")
def test_finetuning(lines: list[Line], clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of the table in one command; predict then uses the folder that its kind left."""
    monkeypatch.chdir(clone)
    trained = {"text-classification": "sst2", "ner": "conll2003", "qa": "squad"}
    for line in lines:
        words = list(line.words)
        task = words[words.index("--task") + 1] if "--task" in words else ""
        shutil.rmtree("O", ignore_errors=True)
        if words[1] == "predict" and task in trained:
            shutil.copytree(f"O-{trained[task]}", "O")
        elif words[1] == "convert":
            shutil.copytree("O-sst2", "O")
        run(line, monkeypatch)
        if words[1] == "finetune" and words[words.index("--out") + 1] == "O":
            shutil.rmtree(f"O-{task}", ignore_errors=True)
            shutil.move("O", f"O-{task}")
            for other in Path().glob("O-mnli*"):
                if other.name != "O-mnli":
                    shutil.rmtree(other)


@runs("docs/data_preparation.md")
def test_data_preparation(lines: list[Line], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in lines:
        if line.words[-2:] == ("--split", "train"):  # of the rows that --dry-run only counts
            run(Line("", 0, (*PREP, *ROWS.split())), monkeypatch)
        run(line, monkeypatch)
    assert (here / "data_own/tokenizer/vocab.txt").is_file()
    assert (here / "shared/data/manifest.json").is_file()


ROWS = "--text corpus.txt --out data --overwrite --vocab vocab.txt --instances 128:20"


@runs("docs/choosing_documents.md")
def test_choosing_documents(
    lines: list[Line], clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's dataset is a folder of that name."""
    pytest.importorskip("datasets")
    pytest.importorskip("py3langid")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "work").mkdir()
    without(clone, tmp_path / "work", ("data", "glue"))
    (tmp_path / "work/glue").symlink_to(clone / "GLUE")
    monkeypatch.chdir(tmp_path / "work")
    for line in lines:
        shutil.rmtree("data", ignore_errors=True)  # each has other settings
        run(line, monkeypatch)


@runs("docs/small_models.md")
def test_small_models(lines: list[Line], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in lines:
        run(line, monkeypatch)
    assert (here / "runs/small/blimp.json").is_file()
    assert (here / "records.jsonl").is_file()


@runs("docs/tokenizers.md")
def test_tokenizers(lines: list[Line], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in lines:
        run(line, monkeypatch)
    assert (here / "model/tokenizer.json").is_file()


@runs("docs/stores.md")
def test_stores(
    lines: list[Line], repository: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buckets are moto's, on this machine; F.json and R.yaml are included files."""
    shutil.copyfile(repository / "ds_configs/tiny_cpu_phase1.json", "F.json")
    shutil.copyfile(repository / "bertds/recipes/tiny_cpu_phase1.yaml", "R.yaml")
    with s3():
        import fsspec

        store = fsspec.filesystem("s3")
        for bucket in ("dumps", "corpora", "runs"):
            store.mkdir(bucket)
        store.put_file(str(here / "enwiki.xml.bz2"), "dumps/enwiki.xml.bz2")
        for line in lines:
            run(line, monkeypatch)
        assert store.isfile("corpora/wiki/manifest.json")
        assert store.isfile("runs/phase1/step_00000003/manifest.json")


@runs("docs/gpus.md", "docs/resuming.md", "docs/reliability.md")
def test_gpus_resuming_reliability(
    lines: list[Line], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU: what is printed for GPUs starts one process here."""
    prepared = "bertds prep --wiki dump.xml.bz2 --vocab vocab.txt --out data/wiki_books"
    for line in [Line("", 0, tuple(prepared.split())), *lines]:
        run(line, monkeypatch)
