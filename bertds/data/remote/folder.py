"""The small files of a prepared folder in a store: manifest and tokenizer.

Each process reads them when it starts, so it notices a corpus that was prepared again. They are
kept in a folder named after the URL and the manifest's checksum, with the layout of a local one.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from bertds.data.formats.manifest import MANIFEST_NAME
from bertds.data.remote.cache import private_folder
from bertds.data.vocabulary import TOKENIZER_FILES
from bertds.errors import DataError
from bertds.system import storage
from bertds.system.atomic_files import atomic_path, explain_os_error
from bertds.system.secrets import masked


def default_cache_folder() -> Path:
    """Return the default folder of the cache, on the machine's temporary disk.

    Raises:
        BertdsError: another user has created it.
    """
    folder = Path(tempfile.gettempdir()) / f"bertds-cache-{os.geteuid()}"
    private_folder(folder)
    return folder


def mirror(url: str, cache_folder: Path, timeout_seconds: float) -> Path:
    """Fetch manifest and tokenizer; return the local folder that contains them.

    Raises:
        DataError: there is no manifest.
        StoreError: the store did not answer in time.
    """
    try:
        manifest = storage.read_agreed(storage.join(url, MANIFEST_NAME), timeout_seconds)
    except FileNotFoundError:
        # The Hub hides a private repository from users without access.
        login = ". A private repository needs `hf auth login` or HF_TOKEN"
        raise DataError(
            f"{masked(url)}: {MANIFEST_NAME} is missing; preparation writes it last. Only folders "
            "written by data_prep can be read from a store"
            f"{login if url.startswith('hf:') else ''}"
        ) from None
    # Without the URL's query, which may contain a changing signature.
    named = hashlib.sha256(url.partition("?")[0].encode() + b"\n" + manifest).hexdigest()[:32]
    folder = cache_folder / "corpora" / named
    private_folder(cache_folder / "corpora")
    try:
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in TOKENIZER_FILES:
            try:
                data = storage.read_agreed(storage.join(url, f"tokenizer/{name}"), timeout_seconds)
            except FileNotFoundError:
                continue
            _write(folder / "tokenizer" / name, data)
        # Last, as in preparation: a folder with a manifest is complete.
        _write(folder / MANIFEST_NAME, manifest)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    return folder


def _write(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        with atomic_path(path, durable=False) as temporary:
            temporary.write_bytes(data)
