"""The file of metric lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bertds.monitor.run_files import read_metrics
from bertds.system.atomic_files import write_text

FILE = "metrics.jsonl"


def cut_after(path: Path, step: int, validated_step: int | None) -> None:
    """Remove lines of steps after ``step``, of a validation that is repeated, and broken lines."""

    def stays(line: dict[str, Any]) -> bool:
        again = "split" in line and line.get("step") == step != validated_step
        return bool(line.get("step", 0) <= step and not again)

    if path.is_file():
        kept = [line for line in read_metrics(path).lines if stays(line)]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
