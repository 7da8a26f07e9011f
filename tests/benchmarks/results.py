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
    """The result of a benchmark, which also drew a picture and says where it was measured."""
    path, picture = folder / "r.json", folder / "r.png"
    assert main([*arguments, "--json", str(path), "--picture", str(picture)]) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    result = json.loads(path.read_text())
    assert set(result) >= CARRIED
    return result
