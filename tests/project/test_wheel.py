"""A wheel holds all that its commands need, and starts the shipped recipes from any folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what a clone holds, so that the clone stays as it is."""
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=repository, check=True, capture_output=True, text=True)
    for name in filter(None, names.stdout.split("\0")):
        if (repository / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, clone / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "--wheel-dir",
        str(out),
        str(clone),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages(repository: Path, wheel: Path) -> None:
    listed = ["git", "ls-files", "-co", "--exclude-standard", "bertds", "data_prep", "ds_configs"]
    names = subprocess.run(listed, cwd=repository, check=True, capture_output=True, text=True)
    wanted = {
        f"bertds/{name}" if name.startswith("ds_configs/") else name
        for name in names.stdout.split("\n")
        if name and (repository / name).is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == wanted
    assert {name.split("/")[0] for name in found} == {"bertds", "data_prep"}


@pytest.mark.slow
def test_shipped_recipes_start_from_another_folder(
    site: Path, tiny_data: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site), "DS_ACCELERATOR": "cpu"}

    def run(*command: str, module: str = "bertds") -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    script = "import bertds, data_prep; print(bertds.__file__, data_prep.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(file.startswith(str(site)) for file in where.stdout.split())
    plan = json.loads(run("plan", "--config", "large_phase1", "--gpu", "h100", "--json"))
    assert plan["global_batch"] == 65536
    shown = run("config", "show", "bertds/recipes/tiny_cpu_phase1.yaml")
    assert "hidden_size: 128" in shown
    run(
        "train",
        "--config",
        "tiny_cpu_phase1",
        "--set",
        "schedule.total_steps=3",
        f"data.path={tiny_data}",
        "run.dir=run",
        "validation.every_steps=0",
        "log.progress=none",
        "deepspeed.train_batch_size=8",
        "deepspeed.train_micro_batch_size_per_gpu=8",
    )
    assert (tmp_path / "run" / "DONE").is_file()


def article(number: int) -> str:
    """A page of six paragraphs of six sentences of made-up words."""
    chance = random.Random(number)

    def sentence() -> str:
        words = [
            "".join(chance.choices("bdgklmnr", k=2)) + chance.choice("aeiou") for _ in "12345678"
        ]
        return " ".join(words).capitalize() + "."

    text = "\n\n".join(" ".join(sentence() for _ in range(6)) for _ in range(6))
    return (
        f"<page><title>Article {number}</title><ns>0</ns><id>{number + 1}</id><revision>"
        f"<id>{number + 1}</id><text>{text}</text></revision></page>"
    )


@pytest.mark.slow
def test_end_to_end_from_an_empty_folder(
    site: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """``bertds pipeline`` of an installed package, at the smallest size."""
    dump = tmp_path_factory.mktemp("dump") / "wiki.xml"
    dump.write_text("<mediawiki>" + "".join(map(article, range(40))) + "</mediawiki>")
    environment = {**os.environ, "PYTHONPATH": str(site), "DS_ACCELERATOR": "cpu"}
    command = [
        *(sys.executable, "-m", "bertds", "pipeline", "--wiki", str(dump)),
        *("--train-vocab", "300", "--set", "schedule.total_steps=2", "log.progress=none"),
        *("data.sequence_length=32", "data.max_predictions_per_sequence=5"),
        *("validation.max_samples=8", "deepspeed.train_batch_size=4"),
        "deepspeed.train_micro_batch_size_per_gpu=4",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    for made in ("phase1/DONE", "phase2/DONE", "model/config.json", "report/index.html"):
        assert (tmp_path / "demo" / made).is_file()
    assert f"{site}" in (tmp_path / "demo/phase1/environment.json").read_text()
