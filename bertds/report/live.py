"""Serves the report of runs to browsers on this machine; reads run folders and writes nothing."""

from __future__ import annotations

import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bertds.errors import ConfigError, UserError

ADDRESS = "127.0.0.1"
"""Only browsers on this machine can connect; others need SSH."""


class LiveReport(ThreadingHTTPServer):
    """The report at ``http://127.0.0.1:PORT/``.

    Args:
        runs: run folders, or folders that contain several.
        port: the port; 0 = any free one.
        seconds: minimum time between two versions of the page, and the interval at which the
            browser reloads it.
        title: the headline.

    Raises:
        ConfigError: the port is not available.
    """

    daemon_threads = True

    def __init__(self, runs: list[Path], port: int, seconds: float, title: str) -> None:
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"--port {port}: {reason}; use --port 0 for any free port") from None
        self.runs, self.seconds, self.title = runs, seconds, title
        self._lock = threading.Lock()
        self._made: tuple[float, str, bytes] | None = None

    @property
    def port(self) -> int:
        """The port of the server."""
        return int(self.server_address[1])

    def page(self) -> tuple[str, bytes]:
        """Return the type and bytes of the page; only one request at a time renders it."""
        with self._lock:
            now = time.monotonic()
            if self._made is None or now - self._made[0] >= self.seconds:
                self._made = (now, *self._make())
            return self._made[1], self._made[2]

    def _make(self) -> tuple[str, bytes]:
        from bertds.report.curves import charts_of
        from bertds.report.page import page
        from bertds.report.run_view import read_chains

        try:
            chains = read_chains(self.runs)
            if any(run.train for chain in chains for run in chain.runs):
                text = page(self.title, chains, list(charts_of(chains).values()))
                return "text/html; charset=utf-8", text.encode()
            waiting = f"{', '.join(map(str, self.runs))}: no metrics yet"
        except UserError as error:  # a run that is just being created
            waiting = str(error)
        return "text/plain; charset=utf-8", f"{waiting}\n".encode()


class _Handler(BaseHTTPRequestHandler):
    """Answers ``GET /`` and nothing else."""

    server: LiveReport
    server_version = "bertds"

    def do_GET(self) -> None:
        """Send the page."""
        # Against DNS rebinding: another site's page sends its own name as the host.
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in (ADDRESS, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        if self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        kind, body = self.server.page()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Refresh", f"{self.server.seconds:g}")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log no requests."""
