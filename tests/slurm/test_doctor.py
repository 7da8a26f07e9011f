from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bertds.commands.doctor import main
from tests.support.ranks import free_ports


def test_this_machine(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--run", str(tmp_path / "run"), "--min-free-gb", "0"]
    assert main(["--data", str(tiny_data), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "ok    torch " in shown and "ok    data " in shown and "FAIL" not in shown
    assert main(["--data", "/does/not/exist", *arguments]) == 1
    assert "FAIL  data           /does/not/exist: not found" in capsys.readouterr().out
    assert main(["--run", str(tmp_path), "--min-free-gb", "1e9"]) == 1


def test_a_single_node_reports_and_is_judged(
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    assert main(["--cluster", "--data", str(tiny_data), "--run", str(tmp_path)]) == 0
    report = tmp_path / "report"
    report.write_text(capsys.readouterr().out)
    assert json.loads(report.read_text())["node"] == "n7"
    bad = tmp_path / "bad"
    judge = ["--judge", str(report), "--min-free-gb", "0", "--bad-nodes", str(bad)]
    assert main([*judge, "--nodes", "n7"]) == 0
    assert main([*judge, "--nodes", "n7,n8"]) == 1
    assert bad.read_text() == "n8"
    assert "bad node n8: no report" in capsys.readouterr().err


def test_the_first_node_waits_for_late_ones(tmp_path: Path) -> None:
    """The second node starts seconds later, and nothing else holds the first."""
    port = free_ports(1)[0] - 1

    def start(number: int) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "SLURM_PROCID": str(number),
            "SLURM_NTASKS": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "SLURMD_NODENAME": f"n{number}",
        }
        command = [sys.executable, "-m", "bertds.cli", "doctor", "--cluster", "--level", "quick"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    first = start(0)
    time.sleep(4)
    second = start(1)
    text = "".join(node.communicate(timeout=60)[0] for node in (first, second))
    said = [json.loads(line) for line in text.splitlines()]
    assert [line["node"] for line in said if "clock" in line.get("meet", {})] == ["n0", "n1"]
