"""The script that will measure GPUs runs here at a tiny size."""

from __future__ import annotations

import json

import pytest

from benchmarks.train_step import main


@pytest.mark.slow
def test_it_shows_equal_losses_and_both_speeds(tmp_path, capsys, monkeypatch) -> None:
    path = tmp_path / "t.json"
    assert main(["--tiny", "--lengths", "128", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    [line] = result["lines"]
    assert line["equality"]["largest_relative_difference"] < 1e-5
    assert 0 < line["padding"] < 0.6
    for name in ("bertds", "transformers"):
        row = line[name]
        assert row["padded_tokens_per_second"] > row["real_tokens_per_second"] > 0
        assert {
            "attention forward",
            "attention backward",
            "MLP forward",
            "optimizer",
            "heads forward",
        } <= set(row["parts"])
        assert 0 < row["mfu"] < 1.5
    assert {"date", "command", "machine", "versions"} <= set(result)
    printed = capsys.readouterr().out
    assert main(["--show", str(path)]) == 0
    assert capsys.readouterr().out.strip() in printed
