"""Values for trackers: the numbers of a metric line by name, and the checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertds.system.json_fields import parse_json


def flat(values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a metric line by their names in trackers: train/mlm_loss."""
    prefix = values.get("split", "train")
    found = {
        f"{prefix}/{key}": value
        for key, value in values.items()
        if isinstance(value, (int, float)) and key != "step"
    }
    for group, triple in values.get("trust_ratio", {}).items():
        names = (f"trust_ratio/{group}_{end}" for end in ("min", "median", "max"))
        found.update((name, value) for name, value in zip(names, triple) if value is not None)
    return found


def saved_checkpoints(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the checkpoints of a run: name -> step, samples, bytes."""
    found = {}
    for manifest in sorted(run_dir.glob("checkpoints/step_*/manifest.json")):
        facts = parse_json(manifest.read_text(encoding="utf-8"))
        found[manifest.parent.name] = {
            "step": facts.get("step"),
            "samples": facts.get("state", {}).get("samples"),
            "bytes": sum(file.stat().st_size for file in manifest.parent.iterdir()),
        }
    return found
