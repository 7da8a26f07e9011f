"""Runs a benchmark and reads what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CARRIED = {"date", "command", "machine", "cores", "load_average", "versions", "note"}


def result_of(
    main: Callable[[list[str]], int], arguments: Sequence[str], folder: Path
) -> dict[str, Any]:
    """The result of a benchmark, which says where it was measured."""
    path = folder / "r.json"
    assert main([*arguments, "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert set(result) >= CARRIED
    return result
