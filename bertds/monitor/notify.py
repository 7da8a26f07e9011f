"""Notifies when a run is done, stopped, failed or has a health warning: by a command or a webhook.

A notification never ends or delays a run: it is sent in threads, whose failures are one line in the
log.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import urllib.request
from pathlib import Path
from typing import Literal

from bertds.config.run_settings import NotifyConfig
from bertds.errors import ConfigError, short_reason
from bertds.system.logs import log

Event = Literal["done", "stopped", "failed", "warning"]
WEBHOOK_VARIABLE = "BERTDS_WEBHOOK"
TIMEOUT_SECONDS = 15.0


class Notifier:
    """Sends events of one run.

    Args:
        config: the recipe's section.
        run_dir: the run folder.
        name: the run's name.

    Raises:
        ConfigError: the webhook is not a URL.
    """

    def __init__(self, config: NotifyConfig, run_dir: Path, name: str) -> None:
        self.command = config.command
        self.webhook = config.webhook or os.environ.get(WEBHOOK_VARIABLE, "")
        if self.webhook and not self.webhook.startswith(("http://", "https://")):
            raise ConfigError("notify.webhook must start with http:// or https://")
        self.run_dir = run_dir
        self.name = name
        self._threads: list[threading.Thread] = []

    def send(self, event: Event, step: int, text: str) -> None:
        """Send an event without waiting."""
        message = {
            "event": event,
            "run": str(self.run_dir),
            "step": step,
            "text": f"bertds {self.name}: {text}",  # what Slack shows
            "content": f"bertds {self.name}: {text}",  # what Discord shows
        }
        for channel in (self._run_command, self._post):
            thread = threading.Thread(target=channel, args=(message,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Wait until everything is sent, for a limited time."""
        for thread in self._threads:
            thread.join(TIMEOUT_SECONDS + 1)

    def _run_command(self, message: dict[str, str | int]) -> None:
        if not self.command:
            return
        variables = {
            f"BERTDS_{key.upper()}": str(message[key]) for key in ("event", "run", "step", "text")
        }
        try:
            done = subprocess.run(
                self.command,
                shell=True,  # a command line of the user
                input=json.dumps(message),
                env={**os.environ, **variables},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                start_new_session=True,
            )
            if done.returncode:
                said = " ".join(done.stderr.split())[:200]
                log.warning("notify.command: exit code %d %s", done.returncode, said)
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("notify.command: %s", short_reason(error))

    def _post(self, message: dict[str, str | int]) -> None:
        if not self.webhook:
            return
        request = urllib.request.Request(
            self.webhook,
            data=json.dumps(message).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "bertds"},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
                pass
        except (OSError, ValueError) as error:  # the address is a secret, so it is not shown
            log.warning("notify.webhook: %s", type(error).__name__)
