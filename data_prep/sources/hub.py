"""Datasets of the Hugging Face Hub, or local folders with the layout of one (``--hf``).

``datasets`` finds the files of a name, configuration and split (from the ``configs`` of the card,
or from the names of the files). On the Hub it does so at one revision, which becomes part of the
file names. Nothing is downloaded beforehand. Parquet files, which is what the Hub serves, are read
by row groups from where they are: several workers share one file, and a restart repeats little.
Files in other formats (JSON, CSV, text) are streamed by ``datasets``, each as one unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from bertds.errors import ConfigError, DataError
from bertds.system.stored_path import FilePath
from data_prep.document import NO_TEXT_KEY, Document, SourceFile, Unit
from data_prep.sources.records import (
    parquet_documents,
    parquet_row_groups,
    record_title,
    text_value_document,
)

if TYPE_CHECKING:
    from datasets import DatasetBuilder

NAME_PREFIX = "hf:"
"""Prefix of a dataset's name as a source: ``hf:wikimedia/wikipedia:20231101.en``."""


def find_hub(given: str, split: str, key: str) -> list[SourceFile]:
    """Return the files of one ``--hf NAME[:CONFIG]``.

    Args:
        given: a name on the Hub or a folder, with or without a configuration.
        split: name of the split.
        key: field of the text.

    Raises:
        DataError: there is no such dataset, configuration or split, or it cannot be reached.
    """
    name, config = _name_and_config(given)
    builder = dataset_builder(given, name, config)
    data_files = getattr(builder.config, "data_files", None) or {}
    if split not in data_files:
        there = ", ".join(map(str, data_files)) or "none"
        raise DataError(f"--hf {given}: no split {split!r} (available: {there}); set --hf-split")
    # The loader's module is named after the file format: parquet, json, csv, text.
    layout = type(builder).__module__.rpartition(".")[2]
    folder = Path(name)
    if folder.is_dir():
        source = ":".join([folder.resolve().name, *([config] if config else [])])
    else:
        source = given
    licence = _licence(name)
    files = []
    for url in map(str, data_files[split]):
        remote = "://" in url
        path = Path(url)
        # On the Hub: datasets/NAME@REVISION/...; a new revision gives new names.
        below = url.rpartition("://")[2].removeprefix("datasets/") if remote else path.name
        if not remote and folder.resolve() in path.resolve().parents:
            below = path.resolve().relative_to(folder.resolve()).as_posix()
        size = _remote_size(given, url) if remote else path.stat().st_size
        files.append(
            SourceFile(
                NAME_PREFIX + source,
                "hf",
                path,
                below,
                size,
                (key, layout, url if remote else ""),
                licence,
            )
        )
    return sorted(files, key=lambda file: file.name)


def _name_and_config(given: str) -> tuple[str, str]:
    if Path(given).is_dir():
        return given, ""
    name, colon, config = given.rpartition(":")
    return (name, config) if colon else (given, "")


def dataset_builder(given: str, name: str, config: str) -> DatasetBuilder:
    """Return the ``datasets`` description of a dataset, without loading its rows.

    Raises:
        ConfigError: the package ``datasets`` is missing.
        DataError: the dataset or configuration does not exist, or cannot be reached.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "--hf requires the package datasets; install it with: pip install datasets"
        ) from error
    import huggingface_hub

    # Without a network, a dozen lines about retries would precede the one error.
    huggingface_hub.logging.set_verbosity_error()
    folder = Path(name)
    if folder.is_file():
        raise DataError(
            f"--hf {given}: is a file; use --parquet, --jsonl or --text, or give a folder"
        )
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise DataError(f"--hf {given}: no such folder")
    try:
        if config and (folder / config).is_dir() and not (folder / "README.md").exists():
            return datasets.load_dataset_builder(str(folder / config))  # a copy without its card
        return datasets.load_dataset_builder(name, config or None)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        raise DataError(f"--hf {given}: {_one_line(error)}") from error
    except OSError as error:
        raise DataError(
            f"--hf {given}: cannot be reached ({_one_line(error)}); on a machine with network "
            f"access run: hf download {name} --repo-type dataset --local-dir DIR; then use --hf "
            f"DIR{(':' + config if config else '')}"
        ) from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # A configuration is missing or does not exist, or the dataset is a script.
        raise DataError(
            f"--hf {given}: {_one_line(error)} (give a configuration after a colon: NAME:CONFIG)"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split("Example of usage")[0].split())[:300].rstrip(".")


def _licence(name: str) -> str:
    """Return the licence on the dataset's card, or ""."""
    from huggingface_hub import DatasetCard

    path = Path(name) / "README.md"
    try:
        card = DatasetCard.load(str(path) if Path(name).is_dir() else name)
    except Exception:  # optional: there may be no network, no card, or one that cannot be parsed
        return ""
    licence = card.data.to_dict().get("license") or ""
    return ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence)


def _errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions of the Hub's client: an OSError, or one of its HTTP library."""
    from huggingface_hub.errors import HfHubHTTPError

    # Invalid JSON, YAML or Parquet raises a ValueError.
    return (OSError, ValueError, *HfHubHTTPError.__bases__)


def _remote_size(given: str, url: str) -> int:
    import fsspec

    try:
        filesystem, path = fsspec.url_to_fs(url)
        return int(filesystem.size(path) or 0)
    except _errors() as error:
        raise DataError(f"--hf {given}: {url} cannot be reached ({_one_line(error)})") from error


def _opened(path: FilePath, url: str) -> FilePath | BinaryIO:
    """Return what pyarrow takes: a local path, or a file on the Hub."""
    if not url:
        return path
    import fsspec

    return fsspec.open(url, "rb").open()


def hub_units(file: SourceFile, whole: Unit, unit_bytes: int) -> Iterator[Unit]:
    """Cut a file into units: row groups of Parquet, else the whole file."""
    key, layout, url = file.options
    if layout != "parquet":
        yield whole
        return
    yield from row_group_units(
        whole, parquet_row_groups(_opened(file.path, url), file.name, key), unit_bytes
    )


def row_group_units(whole: Unit, sizes: list[int], unit_bytes: int) -> Iterator[Unit]:
    """Join row groups ``[start, end)`` into units of about ``unit_bytes``."""
    first = size = number = 0
    for group, own in enumerate(sizes):
        size += own
        if size >= unit_bytes or group + 1 == len(sizes):
            yield whole._replace(number=number, start=first, end=group + 1, size=size)
            number, first, size = number + 1, group + 1, 0


def read_hub(unit: Unit) -> Iterator[Document]:
    """Yield the documents of one unit.

    Raises:
        DataError: the file cannot be read, or its first record lacks the key of the text.
    """
    key, layout, url = unit.options
    path = url or unit.file
    if layout == "parquet":
        groups = range(unit.start, unit.end)
        try:
            yield from parquet_documents(_opened(unit.path, url), path, groups, key, unit.limits)
        except _errors() as error:
            raise DataError(f"{path}: cannot be read ({_one_line(error)})") from error
        return
    import datasets

    try:
        rows = datasets.load_dataset(layout, data_files=[path], split="train", streaming=True)
        for number, row in enumerate(rows):
            # A record without the key is dropped. If the first one lacks it, the key is probably
            # wrong.
            if key not in row and number:
                yield Document("", NO_TEXT_KEY, record_title(row))
                continue
            if key not in row:
                raise DataError(
                    f"{path}: a record has no {key!r} (it has: {', '.join(list(row)[:8])}); set "
                    "the field that has the text with --text-key"
                )
            yield text_value_document(row[key], record_title(row))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({_one_line(error)})") from error
