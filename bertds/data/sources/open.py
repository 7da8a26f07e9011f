"""Opens ``data.path``, whatever it contains, as a source of training rows."""

from __future__ import annotations

from pathlib import Path

import h5py

from bertds.config.recipe import DataConfig
from bertds.config.row_settings import RowSettings
from bertds.data.formats.manifest import MANIFEST_NAME
from bertds.data.formats.nvidia_hdf5 import list_instance_files
from bertds.data.formats.plain_text import text_shard
from bertds.data.sources.base import Source
from bertds.data.sources.instance_source import InstanceSource, find_tokenizer
from bertds.data.sources.token_source import TokenSource
from bertds.data.vocabulary import load_tokenizer_info
from bertds.errors import ConfigError, DataError
from bertds.system.storage import is_url


def check_recorded_path(path: str) -> None:
    """Refuse data that a run names but that is missing, such as by a path relative to elsewhere.

    Raises:
        DataError: there is no such file or folder.
    """
    if path and not is_url(path) and not Path(path).exists():
        raise DataError(
            f"{path}, the data that the run recorded: no such file or folder; give the path of the "
            "data with --data"
        )


def open_source(data_config: DataConfig, seed: int, *, split: str = "train") -> Source:
    """Open training data.

    Args:
        data_config: a ``bertds.config.recipe.DataConfig``.
        seed: decides the pairs and masks that are drawn on the fly.
        split: "train" or "validation". A text file or a single instance file is always used as a
            whole.

    Returns:
        Token shards of a prepared folder (one with ``manifest.json``), NVIDIA HDF5 (a folder of
        ``.hdf5`` files or one of them), or a plain text file. From a URL: token shards.

    Raises:
        ConfigError: a setting is missing or impossible.
        DataError: the data is missing, damaged, or does not fit the settings.
        StoreError: the store did not answer in time.
    """
    if not data_config.path:
        raise ConfigError(
            "data.path is not set; give a prepared folder, NVIDIA HDF5 files or a text file"
        )
    settings = data_config.rows
    if is_url(data_config.path):
        # Imported here, because local paths need none of it.
        from bertds.data.remote.source import RemoteTokenSource

        return RemoteTokenSource.open(data_config, seed, split=split)
    path = Path(data_config.path)
    if not path.exists():
        raise DataError(f"data.path={path}: no such file or folder")
    # A folder: prepared token shards, one of its splits by mistake, unfinished, or instance files.
    if path.is_dir():
        if (path / MANIFEST_NAME).exists():
            return TokenSource.from_folder(
                path,
                settings,
                seed,
                split=split,
                verify=data_config.verify,
                vocab=data_config.vocab,
            )
        if (path.parent / MANIFEST_NAME).exists() and any(path.glob("shard_*.h5")):
            raise DataError(f"data.path={path} is a single split; give its parent folder")
        # Preparation works in .work and removes it at the end.
        if any(path.glob("*/shard_*.h5")) or (path / ".work").is_dir():
            raise DataError(
                f"{path / MANIFEST_NAME}: missing; preparation writes it last, so the folder is "
                "incomplete. Run preparation again"
            )
        if not list_instance_files(path):
            raise DataError(
                f"data.path={path}: contains neither {MANIFEST_NAME} of a prepared folder nor "
                ".hdf5 files"
            )
        return _open_instances(data_config, path, seed, split)
    # A file: instances, or text to be tokenized now.
    if h5py.is_hdf5(path) or path.suffix in (".hdf5", ".h5"):
        return _open_instances(data_config, path, seed, split)
    return _open_text(data_config, path, settings, seed)


def _open_instances(data_config: DataConfig, path: Path, seed: int, split: str) -> Source:
    source = InstanceSource(
        path,
        find_tokenizer(path, data_config.vocab, data_config.lower_case),
        seed,
        split=split,
        sequence_length=data_config.sequence_length,
        with_pairs=data_config.pairs != "none",
    )
    masked, most = source.max_predictions, data_config.max_predictions_per_sequence
    if data_config.pack_tokens and masked > most:
        raise DataError(
            f"{path}: rows of up to {masked} masked positions, but "
            f"data.max_predictions_per_sequence={most}, to which data.pack_tokens pads; raise it"
        )
    return source


def _open_text(data_config: DataConfig, path: Path, settings: RowSettings, seed: int) -> Source:
    if not data_config.vocab:
        raise ConfigError(
            f"data.vocab is not set: the text file {path} needs a vocab.txt or tokenizer.json"
        )
    tokenizer = load_tokenizer_info(data_config.vocab, data_config.lower_case)
    shard = text_shard(path, tokenizer)
    facts = {"documents": shard.documents, "sentences": shard.sentences, "tokens": shard.tokens}
    return TokenSource(
        str(path), "text", tokenizer, settings, seed, [shard.documents], {0: shard}, facts=facts
    )
