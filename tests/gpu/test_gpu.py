"""The checks on a GPU (``make test-gpu``), and on a CPU in the everyday tests."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu.checks import CHECKS

Check = Callable[[str, Path], None]
SLOW = {  # what other tests show on a CPU every day
    "a_resumed_run_is_the_unbroken_one",
    "compiled_layers_change_nothing",
    "zero_stages_train_alike",
}
NAMES = [check.__name__ for check in CHECKS]


@pytest.mark.gpu
@pytest.mark.parametrize("check", CHECKS, ids=NAMES)
def test_on_a_gpu(check: Check, tmp_path: Path) -> None:
    check("cuda", tmp_path)


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(
            check, id=check.__name__, marks=[pytest.mark.slow] if check.__name__ in SLOW else []
        )
        for check in CHECKS
    ],
)
def test_on_a_cpu(check: Check, tmp_path: Path) -> None:
    check("cpu", tmp_path)


def test_they_run_without_pytest_and_keep_each_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that fails is named with its reason, and the others still run."""
    module = importlib.import_module("tests.gpu.checks")
    run = importlib.import_module("tests.gpu.run")

    def a_broken_one(device: str, folder: Path) -> None:
        assert device == "cuda", f"it ran on a {device}"

    hidden = module.hidden_dropout_has_its_rate_and_follows_the_seed
    monkeypatch.setattr(module, "CHECKS", [a_broken_one, hidden])
    path = tmp_path / "r.json"
    assert run.main(["--device", "cpu", "--json", str(path)]) == 1
    first, second = json.loads(path.read_text())["checks"]
    assert (first["name"], first["verdict"]) == ("a broken one", "FAIL")
    assert (
        first["why"].startswith("AssertionError: it ran on a cpu") and second["verdict"] == "PASS"
    )
    assert "FAIL" in capsys.readouterr().out
    assert run.main(["--device", "cpu", "--only", "hidden"]) == 0


def test_make_test_gpu_finds_all_gpu_tests(repository: Path) -> None:
    """Collecting all tests would take 33% of its time."""
    mark = "mark." + "gpu"
    folders = {
        str(path.parent.relative_to(repository))
        for path in (repository / "tests").rglob("*.py")
        if mark in path.read_text(encoding="utf-8")
    }
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    assert f"pytest -m gpu {' '.join(sorted(folders))} $(ARGS)" in makefile
