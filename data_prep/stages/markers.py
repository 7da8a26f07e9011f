"""Completion markers, by which a restarted run skips finished work.

A result counts if its marker names the same inputs, and its file still has the recorded checksum.
So neither markers nor parts are flushed to the disk: what a power failure destroys is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bertds.system.atomic_files import sha256_file, write_json
from bertds.system.json_fields import parse_json


def inputs_hash(values: Iterable[object]) -> str:
    """Return a hash of what a result depends on; the order of the values does not matter."""
    return hashlib.sha256("\n".join(sorted(map(str, values))).encode()).hexdigest()


def write_marker(
    marker: Path, file: Path, result: dict[str, Any], inputs: str = "", sha256: str = ""
) -> dict[str, Any]:
    """Record a result, with size and hash of the file that it belongs to.

    Args:
        marker: the path of the marker.
        file: the file that the result belongs to.
        result: further values to record.
        inputs: identifies what the file was made from.
        sha256: the file's checksum, if it is already known.
    """
    value = {
        **result,
        "inputs": inputs,
        "file_bytes": file.stat().st_size,
        "file_sha256": sha256 or sha256_file(file),
    }
    write_json(marker, value, durable=False)
    return value


def read_marker(marker: Path, file: Path, inputs: str = "") -> dict[str, Any] | None:
    """Return a recorded result, or None if the file must be made (again)."""
    try:
        value: dict[str, Any] = parse_json(marker.read_text(encoding="utf-8"))
        # Inputs and size are cheap to compare, the checksum is not.
        if value["inputs"] != inputs or file.stat().st_size != value["file_bytes"]:
            return None
        if sha256_file(file) != value["file_sha256"]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value
