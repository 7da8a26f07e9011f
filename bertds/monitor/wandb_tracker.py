"""Weights & Biases, offline if there is no network."""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import re
import secrets
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bertds.config.recipe import Config
from bertds.errors import short_reason
from bertds.monitor.tracked_values import flat, saved_checkpoints
from bertds.system.atomic_files import write_text
from bertds.system.json_fields import parse_json
from bertds.system.logs import log
from bertds.system.secrets import masked

if TYPE_CHECKING:
    from wandb import Run

ID_FILE = "wandb_id.json"
NO_KEY = "no W&B key found; run `wandb login` or set WANDB_API_KEY"
CONNECT_SECONDS = 5.0
"""Timeout for a connection to the server, or to the proxy."""
INIT_SECONDS = 30.0
"""Timeout for the server's response; W&B's own limit is 90 s."""


def server() -> str:
    """Return the URL of the W&B server."""
    import wandb

    return str(wandb.setup(wandb.Settings(silent=True)).settings.base_url)


def has_key() -> bool:
    """Return whether a key for the W&B server is set in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urllib.parse.urlsplit(server()).hostname or ""
    given = os.environ.get("NETRC")
    files = [Path(given)] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(file).authenticators(host):
                return True
    return False


def is_reachable(url: str) -> bool:
    """Return whether the server, or the proxy on the way to it, accepts a connection."""
    target = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = target.port or (80 if target.scheme == "http" else 443)
    try:
        socket.create_connection((target.hostname or "", port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _masked_arguments() -> Iterator[None]:
    """Hide credentials in the command line, which W&B records and uploads."""
    arguments = sys.argv
    sys.argv = [masked(argument) for argument in arguments]
    try:
        yield
    finally:
        sys.argv = arguments


class WandbTracker:
    """A W&B run. A resumed run continues it, because its id is in the run folder.

    Without a key or a network it continues offline with the same id; ``wandb sync`` uploads its
    files later.
    """

    def __init__(self, config: Config, settings: dict[str, Any], run_dir: Path, name: str) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        self._run_dir = run_dir
        self._project = config.tracking.wandb_project
        self._name = name
        self._settings = settings
        self._id = _run_id(run_dir / ID_FILE)
        self._run = self._start(config.tracking.wandb)

    def _start(self, mode: str) -> Run:
        """Start the W&B run; offline if online fails."""
        import wandb

        if mode == "online":
            reason = ""
            if not has_key():
                reason = NO_KEY
            elif not is_reachable(server()):
                reason = f"{server()} cannot be reached"
            else:
                try:
                    return self._init("online")
                except Exception as error:  # W&B has many errors for a server's response
                    reason = short_reason(error)
                    wandb.teardown()  # its service would report that the id is in use
            log.warning(
                "Weights & Biases continues offline: %s; upload later with: wandb sync %s",
                reason,
                self._run_dir / "wandb" / f"offline-run-*-{self._id}",
            )
        return self._init("offline")

    def _init(self, mode: Literal["online", "offline"]) -> Run:
        import wandb

        with _masked_arguments():
            return wandb.init(
                project=self._project,
                name=self._name,
                id=self._id,
                # Offline runs cannot ask the server; their files have the same id and are merged
                # when they are synchronized.
                resume="allow" if mode == "online" else None,
                mode=mode,
                dir=str(self._run_dir),
                config=self._settings,
                settings=wandb.Settings(console="off", init_timeout=INIT_SECONDS),
            )

    def line(self, values: dict[str, Any]) -> None:
        """Send one metric line."""
        self._run.log(flat(values), step=values["step"])

    def close(self) -> None:
        """Record which checkpoints there are, and finish the W&B run."""
        self._run.summary["checkpoints"] = saved_checkpoints(self._run_dir)
        self._run.finish()


def _run_id(file: Path) -> str:
    """Return the W&B id of a run folder; made and kept at its first start."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # none, or torn by a crash
        found = str(parse_json(file.read_text(encoding="utf-8"))["id"])
        if re.fullmatch(r"[A-Za-z0-9_-]{1,128}", found):
            return found
    made = secrets.token_hex(4)  # as long as W&B's own
    write_text(file, json.dumps({"id": made}) + "\n")
    return made
