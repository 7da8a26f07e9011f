"""Phase two takes weights from phase one, and refuses what does not fit, both sides named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fork_server import ForkServer
from tests.support.tiny import SPECIAL, WORDS, write_tiny_data


@pytest.fixture(scope="module")
def first(
    fork_server: ForkServer,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_recipe: Path,
    tiny_json: Path,
    tiny_data: Path,
) -> Path:
    """A finished first phase."""
    folder = tmp_path_factory.mktemp("first")
    code, text = fork_server.run(
        [
            "--deepspeed_config",
            str(tiny_json),
            "--config",
            str(tiny_recipe),
            "--set",
            f"run.dir={folder / 'run'}",
            f"data.path={tiny_data}",
            "schedule.total_steps=2",
        ],
        output=folder,
    )
    assert code == 0, text
    return folder / "run"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.hidden_size=64", "its hidden_size is 32, this run's is 64"),
        ("model.num_hidden_layers=3", "its num_hidden_layers is 2, this run's is 3"),
        ("model.hidden_act=gelu_new", "its hidden_act is gelu, this run's is gelu_new"),
    ],
)
def test_another_architecture_is_refused(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    first: Path,
    setting: str,
    message: str,
) -> None:
    code, text = fork_server.run(command("run", f"init.from={first}", setting), output=tmp_path)
    assert code == 2 and message in text and str(first) in text
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_vocabulary_is_refused(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path, first: Path
) -> None:
    for name, words, message in (
        ("longer", [*WORDS, "x"], "its vocab_size is 65, this run's is 66"),
        ("other", [*WORDS[:-1], "x"], "trained with vocabulary"),
    ):
        vocab = tmp_path / f"{name}.txt"
        vocab.write_text("\n".join([*SPECIAL, *words]) + "\n")
        data = write_tiny_data(tmp_path / name, vocab)
        kept = [a for a in command(f"run_{name}") if not a.startswith("data.path=")]
        code, text = fork_server.run(
            [*kept, f"data.path={data}", f"init.from={first}"], output=tmp_path
        )
        assert code == 2 and message in text, text


def test_muons_moments_are_refused_by_another_optimizer(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Its hidden matrices have no second moment: AdamW's first update would ruin the model."""
    short = ("schedule.total_steps=2",)
    muon = command("muon", "deepspeed.optimizer.type=Muon", *short)
    code, text = fork_server.run(muon, output=tmp_path)
    assert code == 0, text
    after = ("deepspeed.optimizer.type=AdamW", f"init.from={tmp_path / 'muon'}", *short)
    code, text = fork_server.run(command("adam", *after), output=tmp_path)
    assert code == 2 and "trained with Muon, whose moments AdamW cannot use; set init." in text
    code, text = fork_server.run(
        command("adam", *after, "init.optimizer_state=none"), output=tmp_path
    )
    assert code == 0, text
    # Muon itself can use its own moments, and those of an average.
    for run, origin in (("muon_2", "muon"), ("muon_3", "adam")):
        again = command(run, f"init.from={tmp_path / origin}", *short)
        code, text = fork_server.run([*again, "deepspeed.optimizer.type=Muon"], output=tmp_path)
        assert code == 0, text
