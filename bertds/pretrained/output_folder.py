"""Folders of converted models: whole or not at all, with a tokenizer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bertds.errors import ConfigError
from bertds.system.atomic_files import write_json

MARK = "bertds_export.json"


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``out`` when the block ends well."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise ConfigError(f"{out}: exists and is no earlier conversion; choose another folder")
    temporary = out.with_name(f".tmp-{out.name}.{os.getpid()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        write_json(temporary / MARK, {"converted": True})
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_tokenizer(source: Path | None, folder: Path, length: int, cased: bool) -> None:
    """Copy the tokenizer's files; make a tokenizer_config.json where there is none."""
    assert source is not None
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if not (folder / "tokenizer_config.json").is_file():
        settings = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": not cased,
            "model_max_length": length,
        }
        write_json(folder / "tokenizer_config.json", settings)
