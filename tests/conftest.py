from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: one thread per process, so that tests are quick and
# repeatable on a small machine, and DeepSpeed does not go looking for an accelerator.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The clone that the tests stand in."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real corpora, tasks and weights; tests that need it are skipped without it."""
    folder = Path(os.environ.get("BERTDS_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "README.md").is_file():
        pytest.skip(f"no test data at {folder} (set BERTDS_TEST_DATA)")
    return folder
