"""How a file is damaged, and still looks whole."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    1.5,
    1e308,
    "",
    "x",
    "../../etc/passwd",
    "\0",
    [],
    {},
    [[]],
    {"a": 1},
    "9" * 50,
)


def flip(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def overwrite(data: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(data))
    for place in range(begin, min(len(data), begin + chance.choice((1, 4, 100)))):
        data[place] = chance.choice((0, 0xFF, chance.randrange(256)))


def remove(data: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(data))
    del data[begin : begin + chance.choice((1, 8, 500))]


def insert(data: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(data))
    data[place:place] = chance.choice((b"\0" * 9, b"[" * 3000, b'"', b"\xff\xfe", bytes(data[:50])))


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def repeat(data: bytearray, chance: random.Random) -> None:
    data += data[chance.randrange(len(data)) :]


BYTES = (flip, flip, overwrite, remove, insert, truncate, repeat)


def change_value(value: Any, chance: random.Random) -> None:
    """Damage JSON by its structure: a value somewhere is changed, removed or repeated."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(value)
    node, key = chance.choice(places)
    way = chance.randrange(4)
    if way == 0:
        del node[key]
    elif way == 1 and isinstance(node, list):
        node.insert(key, node[key])
    elif way == 2 and isinstance(node, dict):
        node[f"{key}x"] = node.pop(key)
    else:
        odd = chance.choice((*ODD, chance.choice(places)[0]))
        node[key] = json.loads(json.dumps(odd))


def damage_bytes(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 2))):
        if data:
            chance.choice(BYTES)(data, chance)
    path.write_bytes(data)


def damage_json(path: Path, chance: random.Random) -> None:
    if chance.random() < 0.3:
        damage_bytes(path, chance)
        return
    value = json.loads(path.read_text())
    change_value(value, chance)
    path.write_text(json.dumps(value))
