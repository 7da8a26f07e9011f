"""``settings.jsonl`` of a run folder: one line per start, with the settings that it changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from bertds.system.json_fields import parse_json

FILE = "settings.jsonl"
"""One line per start of the run: its step, and the changed settings."""
_OPTIMIZER = "deepspeed.optimizer.params."


class Change(NamedTuple):
    """An announced setting that differs from that of the previous start."""

    key: str
    before: Any
    """None = it was not set."""
    now: Any

    @property
    def name(self) -> str:
        """The usual name of the key: ``lr`` for the optimizer's learning rate."""
        return self.key.removeprefix(_OPTIMIZER)


def as_line(step: int, world_size: int, time: str, changed: list[Change]) -> str:
    """Return the line of ``settings.jsonl`` for one start."""
    listed = {change.key: [change.before, change.now] for change in changed}
    return json.dumps({"time": time, "step": step, "world_size": world_size, "changes": listed})


def read_changes(run: Path) -> list[tuple[int, Change]]:
    """Return every announced change of a run, with the step from which it applies."""
    file = run / FILE
    if not file.is_file():
        return []
    found = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = parse_json(text)
            for key, (before, now) in line["changes"].items():
                found.append((int(line["step"]), Change(key, before, now)))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            continue  # truncated by a crash
    return found
