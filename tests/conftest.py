from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.tiny import (
    TINY_JSON,
    TINY_RECIPE,
    WORDS,
    tiny_documents,
    write_tiny_data,
    write_tiny_vocab,
)

if TYPE_CHECKING:
    from tests.support.fork_server import ForkServer

# Before torch is imported anywhere: one thread per process, so that tests are quick and
# repeatable on a small machine, and DeepSpeed does not go looking for an accelerator.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests of failing connections would print torch's stack frames into the report of another test.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
# Triton reads this when it is imported: without a GPU its kernels run in its interpreter.
if not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Likewise nohup and a closed terminal.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
HANDLERS = {
    number: signal.getsignal(number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
}

# An example that takes long, as the first does that waits for a compiler or for a busy machine, is
# no failure.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

__all__ = ["WORDS", "tiny_documents"]  # for tests in this folder

REPOSITORY = Path(__file__).resolve().parents[1]


LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def pytest_configure(config: pytest.Config) -> None:
    """``-m gpu`` trains on the GPU: DeepSpeed is told so before it is imported."""
    if config.option.markexpr == "gpu":
        os.environ["DS_ACCELERATOR"] = "cuda"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def no_launcher() -> Iterator[None]:
    """A run inside the test process names its rank in the environment; no other test sees it."""
    forget_launcher()
    yield
    forget_launcher()


def forget_launcher() -> None:
    for name in LAUNCHER:
        os.environ.pop(name, None)


def restore_signals() -> None:
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A run inside this process (a fixture's too) ignores signals from its end on; no test does.

    Nor do processes that a fixture of a module or session starts before the next test.
    """
    restore_signals()
    yield
    restore_signals()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The clone that contains the tests."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real corpora, tasks and weights; tests that need it are skipped without it."""
    folder = Path(os.environ.get("BERTDS_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "README.md").is_file():
        pytest.skip(f"no test data at {folder} (set BERTDS_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocab.txt of the special tokens and 60 words."""
    return write_tiny_vocab(tmp_path_factory.mktemp("vocab") / "vocab.txt")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training documents as plain text: a sentence a line, a blank line between documents."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    documents = tiny_documents(60, seed=0)
    path.write_text("\n".join("\n".join(map(" ".join, d)) + "\n" for d in documents))
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory, tiny_vocab: Path) -> Path:
    """A prepared folder: three training shards, one of validation, tokenizer, manifest."""
    return write_tiny_data(tmp_path_factory.mktemp("prepared"), tiny_vocab)


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that trains in seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY_RECIPE)
    return path


@pytest.fixture(scope="session")
def tiny_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its DeepSpeed JSON: 12 rows a step, two to a micro batch."""
    path = tmp_path_factory.mktemp("json") / "tiny.json"
    path.write_text(TINY_JSON)
    return path


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Forks ranks of training runs from a process that has imported everything."""
    from tests.support.fork_server import ForkServer

    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def command(
    tiny_recipe: Path, tiny_json: Path, tiny_data: Path, tmp_path: Path
) -> Callable[..., list[str]]:
    """Build a training command for a run folder below tmp_path."""

    def build(run: str, *assignments: str, deepspeed: Path = tiny_json) -> list[str]:
        return [
            "--deepspeed",
            "--deepspeed_config",
            str(deepspeed),
            "--config",
            str(tiny_recipe),
            "--set",
            f"run.dir={tmp_path / run}",
            f"data.path={tiny_data}",
            *assignments,
        ]

    return build
