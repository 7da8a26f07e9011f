"""What is set before the processes of a run meet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertds.engine.process_group import use_expandable_segments


@pytest.mark.parametrize("variable", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", None])
def test_segments_are_expandable_unless_the_environment_configures_the_allocator(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[str] = []
    monkeypatch.setattr("torch.cuda.memory._set_allocator_settings", settings.append)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "max_split_size_mb:512")
    use_expandable_segments()
    assert settings == ([] if variable else ["expandable_segments:True"])


FIRST_ENGINE = """
import gc, sys, weakref
from tests.gpu.small_bert import make_engine, train

assert "deepspeed" not in sys.modules
engine = make_engine("cpu", 1, "bf16")
train(engine, range(1))
held = [weakref.ref(engine._engine), weakref.ref(engine._engine.module)]
engine.close()
del engine
gc.collect()
print([reference() is None for reference in held])
"""


@pytest.mark.slow
def test_the_engine_that_imports_deepspeed_is_released_like_any_other(repository: Path) -> None:
    """Its model exists before the import; on a GPU both would hold gigabytes."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_ENGINE],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[True, True]"
