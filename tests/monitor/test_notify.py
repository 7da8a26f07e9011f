from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bertds import train
from bertds.config.run_settings import NotifyConfig
from bertds.errors import ConfigError
from bertds.monitor import notify
from bertds.monitor.notify import Notifier
from bertds.monitor.trackers import HealthWarnings
from tests.support.made_runs import train_line

KEEP = 'printf "%s %s %s\\n" "$BERTDS_EVENT" "$BERTDS_STEP" "$BERTDS_TEXT" >> "{0}"'


def told(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(notify.log, "warning", lambda text, *a: texts.append(text % a))
    return texts


def test_a_run_sends_a_notice_when_it_ends_or_stops(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    file = tmp_path / "told"
    words = command("run", "run.max_hours=1e-9")
    words.append(f"notify.command={json.dumps(KEEP.format(file))}")
    assert train.entry(words) == 75
    words.remove("run.max_hours=1e-9")
    assert train.entry(words) == 0
    first, last = told(file)
    assert first.startswith("stopped 1 bertds run: stopped at step 1 (run.max_hours was reached)")
    assert last == "done 6 bertds run: done at step 6"


def test_a_failure_is_reported(command: Callable[..., list[str]], tmp_path: Path) -> None:
    from bertds.training.run import Run

    file = tmp_path / "told"
    words = [*command("run"), f"notify.command={json.dumps(KEEP.format(file))}"]

    def fail(self: Run) -> None:
        raise OSError("no space left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "next_batch", fail)
        assert train.entry(words) == 1
    assert told(file) == ["failed 0 bertds run: failed at step 0: no space left"]


def test_a_problem_is_reported_once(tmp_path: Path) -> None:
    file = tmp_path / "told"
    notifier = Notifier(NotifyConfig(command=KEEP.format(file)), tmp_path, "x")
    watcher = HealthWarnings(notifier)
    for step in range(10, 400, 10):
        watcher.line(train_line(step, stall_seconds=7.0))
    notifier.close()
    lines = told(file)
    assert len(lines) == len({line.split(": ")[1] for line in lines}) >= 1
    assert all(line.startswith("warning ") for line in lines)


def test_a_webhook_gets_json(tmp_path: Path, said: list[str]) -> None:
    got: list[dict[str, object]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if len(got) > 1 else 204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/secret"
        notifier = Notifier(NotifyConfig(webhook=address), tmp_path, "mine")
        notifier.send("done", 7, "done at step 7")
        notifier.close()
        notifier.send("warning", 8, "x")
        notifier.close()
        server.shutdown()
        thread.join()
    assert got[0] == {
        "event": "done",
        "run": str(tmp_path),
        "step": 7,
        "text": "bertds mine: done at step 7",
        "content": "bertds mine: done at step 7",
    }
    assert len(said) == 1 and "HTTPError" in said[0] and "secret" not in said[0]


def test_trouble_is_one_line_and_nothing_more(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "TIMEOUT_SECONDS", 0.2)
    for command in ("exit 3", "sleep 60"):
        notifier = Notifier(NotifyConfig(command=command), tmp_path, "x")
        notifier.send("done", 1, "x")
        notifier.close()
    assert "exit code 3" in said[0] and "timed out" in said[1]
    with pytest.raises(ConfigError, match="must start with http"):
        Notifier(NotifyConfig(webhook="file:///etc/passwd"), tmp_path, "x")
