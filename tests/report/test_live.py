from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertds.cli import main as command
from bertds.report.live import ADDRESS, LiveReport
from tests.support.made_runs import make_run, train_line


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", [train_line(s) for s in (10, 20, 30)], done=False)


@pytest.fixture
def server(run: Path) -> Iterator[LiveReport]:
    with LiveReport([run], 0, 1.0, "Live") as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(
    server: LiveReport, method: str = "GET", path: str = "/", host: str = ""
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(ADDRESS, server.port, timeout=60)
    connection.request(method, path, headers={"Host": host or f"localhost:{server.port}"})
    answer = connection.getresponse()
    text = answer.read().decode()
    if answer.status == 200:
        assert answer.headers["Refresh"] == "1"
    connection.close()
    return answer.status, text


def test_the_page_follows_the_run_and_nothing_is_written(run: Path, server: LiveReport) -> None:
    assert server.server_address[0] == "127.0.0.1"
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    status, first = ask(server)
    assert status == 200 and "30 / 1,000" in first
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    make_run(run.parent / "more", [train_line(s) for s in (10, 40)])
    (run / "metrics.jsonl").write_bytes((run.parent / "more/metrics.jsonl").read_bytes())
    server._made = None  # as after a second
    assert "40 / 1,000" in ask(server)[1]


def test_only_the_page_for_this_machine(server: LiveReport) -> None:
    assert ask(server, path="/../../etc/passwd")[0] == 404
    assert ask(server, method="POST")[0] == 501
    assert ask(server, host="evil.example:80")[0] == 403


def test_a_run_without_metrics_is_waited_for(tmp_path: Path, server: LiveReport) -> None:
    server.runs = [make_run(tmp_path / "new", [], done=False)]
    assert ask(server) == (200, f"{tmp_path / 'new'}: no metrics yet\n")


def test_the_command_says_where_and_ends_with_ctrl_c(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: LiveReport, poll_interval: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LiveReport, "serve_forever", interrupted)
    assert command(["watch", str(run), "--port", "0"]) == 0
    out = capsys.readouterr().out
    assert "http://127.0.0.1:" in out and "ssh -N -L" in out


def test_wrong_options(run: Path, server: LiveReport, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--port", str(server.port)], ["--port", "99999"], ["--seconds", "0"]):
        assert command(["watch", str(run), *words]) == 2
        assert words[0] in capsys.readouterr().err
    assert command(["watch", str(run.parent / "none")]) == 2
