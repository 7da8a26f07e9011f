"""Reads ``gpus.yaml`` and files like it, the figures of each GPU, and checks each entry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bertds.errors import ConfigError, reason_of
from bertds.system.yaml_text import load_yaml

FILE = Path(__file__).with_name("gpus.yaml")
NEEDED = ("half_tflops", "memory_gib", "memory_tb_s", "watts")
DEFAULTS: dict[str, Any] = {
    "link_gb_s": 32.0,
    "network_gb_s": 1.25,
    "devices_per_node": 8,
    "dollars_per_hour": 0.0,
    "driver": [],
    "source": "no source given",
}
KINDS = ("measured", "published", "assumed")
KEYS = {*NEEDED, *DEFAULTS, "full_tflops", "efficiency", "efficiency_kind", "efficiency_source"}


def read_gpus(path: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of a file by GPU name.

    Raises:
        ConfigError: the file cannot be read, or does not have this form.
    """
    try:
        found = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({reason_of(error)})") from None
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        raise ConfigError(f"{path}: must map GPU names to their figures, like {FILE.name}")
    if "cpu" in found:
        raise ConfigError(
            f"{path}: the name cpu is reserved for the processor of this machine; "
            "choose another name"
        )
    return {str(name): row for name, row in found.items()}


def check_gpu(path: Path, name: str, row: Mapping[str, Any]) -> None:
    """Check one entry.

    Raises:
        ConfigError: a key is unknown or missing, or a value is impossible.
    """
    if unknown := sorted(set(map(str, row)) - KEYS):
        raise ConfigError(
            f"{path}: {name}.{unknown[0]}: unknown key; allowed: {', '.join(sorted(KEYS))}"
        )
    if missing := [key for key in NEEDED if key not in row]:
        raise ConfigError(f"{path}: {name}: missing keys: {', '.join(missing)}")
    # Rates and sizes must be positive; the number of devices must also be whole.
    for key in (*NEEDED, "full_tflops", "link_gb_s", "network_gb_s", "devices_per_node"):
        value = row.get(key, 1)
        if not _is_number(value) or not value > 0 or (key[0] == "d" and int(value) != value):
            raise ConfigError(f"{path}: {name}.{key}={value!r}: must be a number above 0")
    price = row.get("dollars_per_hour", 0)
    if not _is_number(price) or price < 0:
        raise ConfigError(
            f"{path}: {name}.dollars_per_hour={price!r}: must be a number of at least 0"
        )
    # The share is given for the two row lengths of pre-training.
    share = row.get("efficiency", {128: 1.0, 512: 1.0})
    if not isinstance(share, dict) or set(share) != {128, 512}:
        raise ConfigError(
            f"{path}: {name}.efficiency={share!r}: must be like {{128: 0.4, 512: 0.4}}"
        )
    for length, value in share.items():
        if not _is_number(value) or not 0 < value <= 1:
            raise ConfigError(
                f"{path}: {name}.efficiency.{length}={value!r}: must be above 0 and at most 1"
            )
    if (kind := row.get("efficiency_kind", KINDS[0])) not in KINDS:
        raise ConfigError(
            f"{path}: {name}.efficiency_kind={kind!r}: must be one of {', '.join(KINDS)}"
        )
    words = row.get("driver", [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{path}: {name}.driver={words!r}: must be a list of words in quotes")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
