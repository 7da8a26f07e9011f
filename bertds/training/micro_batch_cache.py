"""A cache of the micro batches that were found on this machine."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from bertds.system.atomic_files import write_json
from bertds.system.json_fields import parse_json
from bertds.system.logs import log


def answers_file() -> Path:
    """Return the path of the cache: in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "bertds" / "micro_batch.json"


def _key(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _answers() -> dict[str, Any]:
    try:
        values = parse_json(answers_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def read_answer(facts: dict[str, Any]) -> int | None:
    """Return the cached micro batch, or None; a damaged file counts as empty."""
    entry = _answers().get(_key(facts))
    found = entry.get("micro_batch") if isinstance(entry, dict) else None
    return found if isinstance(found, int) and found > 0 else None


def keep_answer(facts: dict[str, Any], micro_batch: int) -> None:
    """Add an answer to the file; if it cannot be written, the next run searches again."""
    try:
        answers_file().parent.mkdir(parents=True, exist_ok=True)
        entry = {"micro_batch": micro_batch, **facts}
        write_json(answers_file(), {**_answers(), _key(facts): entry})
    except OSError as error:
        log.warning("%s: not written (%s)", answers_file(), error.strerror)
