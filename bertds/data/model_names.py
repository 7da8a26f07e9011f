"""The published BERTs by name, and how to find their folders.

A name is looked up in this order: as a path; as a folder below ``$BERTDS_MODELS``; as a name of the
table below or any hub id, in the Hugging Face cache and, unless ``HF_HUB_OFFLINE`` is set, on the
Hub.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bertds.config.suggest import nearest
from bertds.errors import CheckpointError
from bertds.system.secrets import masked
from bertds.system.storage import is_url

MODELS_VARIABLE = "BERTDS_MODELS"
# Only files that are read: no code, and pickles only with weights_only.
TOKENIZER_PATTERNS = [
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
]
PATTERNS = ["config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_PATTERNS]
WEIGHT_FILES = (".pt", ".ckpt", ".nemo", ".bin", ".safetensors", ".index")


@dataclass(frozen=True, slots=True)
class Named:
    """A published model."""

    name: str
    hub: str
    about: str


_BASE = "12 layers, width 768, 110 M parameters"
_LARGE = "24 layers, width 1024, 340 M parameters"
_SMALL_NAMES = {
    (2, 128): "bert-tiny",
    (4, 256): "bert-mini",
    (4, 512): "bert-small",
    (8, 512): "bert-medium",
}
_SMALL = [
    (layers, width) for layers in (2, 4, 6, 8, 10, 12) for width in (128, 256, 512, 768)
]  # Turc et al. 2019 (arXiv:1908.08962)

MODELS: dict[str, Named] = {
    named.name: named
    for named in [
        Named("bert-base-uncased", "google-bert/bert-base-uncased", _BASE),
        Named("bert-base-cased", "google-bert/bert-base-cased", _BASE),
        Named("bert-large-uncased", "google-bert/bert-large-uncased", _LARGE),
        Named("bert-large-cased", "google-bert/bert-large-cased", _LARGE),
        Named(
            "bert-large-uncased-whole-word-masking",
            "google-bert/bert-large-uncased-whole-word-masking",
            _LARGE,
        ),
        Named(
            "bert-large-cased-whole-word-masking",
            "google-bert/bert-large-cased-whole-word-masking",
            _LARGE,
        ),
        Named(
            "bert-base-multilingual-cased",
            "google-bert/bert-base-multilingual-cased",
            "12 layers, width 768, 104 languages",
        ),
        *(
            Named(
                f"bert_uncased_L-{layers}_H-{width}_A-{width // 64}",
                f"google/bert_uncased_L-{layers}_H-{width}_A-{width // 64}",
                f"{layers} layers, width {width}",
            )
            for layers, width in _SMALL
        ),
    ]
}

ALIASES = {
    # NeMo's names
    "bertbaseuncased": "bert-base-uncased",
    "bertlargeuncased": "bert-large-uncased",
    **{
        short: f"bert_uncased_L-{layers}_H-{width}_A-{width // 64}"
        for (layers, width), short in _SMALL_NAMES.items()
    },
}


def hub_id(name: str) -> str:
    """Return the hub id of a name, an alias or a hub id."""
    name = ALIASES.get(name, name)
    return MODELS[name].hub if name in MODELS else name


def resolve(name_or_path: Path | str) -> Path:
    """Return the folder (or file) of a model, downloaded if necessary.

    Raises:
        CheckpointError: it is neither a path nor cached, and cannot be downloaded; the message has
            the command that downloads it.
    """
    if is_url(name_or_path):
        raise CheckpointError(
            f"{masked(name_or_path)}: a model must be a local path or a name; copy the model to "
            "this machine first"
        )
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    name = str(name_or_path)
    folder = _in_own_folder(name)
    if folder is not None:
        return folder
    identifier = hub_id(name)
    # An unknown word is a typo or a missing path; only "owner/name" may be any repository of the
    # Hub.
    known = ALIASES.get(name, name) in MODELS
    if not known and (identifier.count("/") != 1 or identifier.startswith((".", "/", "~"))):
        hint = nearest(name, [*MODELS, *ALIASES]) or "; `bertds models` lists the names"
        raise CheckpointError(f"{name}: no folder or model has this name{hint}")
    if path.suffix in WEIGHT_FILES:
        raise CheckpointError(f"{name}: no such file")
    return _from_hub(name, identifier)


def path_of(name_or_path: str) -> Path:
    """Return a path unchanged, or the folder of a name that ``bertds models`` lists.

    Unlike :func:`resolve` it accepts no hub id: a missing "runs/phase1" is a missing run.

    Raises:
        CheckpointError: the folder of a listed name is not here and cannot be downloaded.
    """
    listed = name_or_path in MODELS or name_or_path in ALIASES
    return resolve(name_or_path) if listed else Path(name_or_path)


def vocabulary_path(name_or_path: Path | str) -> Path:
    """Return a path unchanged, or for a listed name the folder with its tokenizer.

    Of a model that is not here only the tokenizer is downloaded.

    Raises:
        CheckpointError: the tokenizer of a listed name is not here and cannot be downloaded.
    """
    name = str(name_or_path)
    path = Path(name_or_path)
    if path.exists() or not (name in MODELS or name in ALIASES):
        return path
    return _in_own_folder(name) or _from_hub(name, hub_id(name), weights=False)


def _in_own_folder(name: str) -> Path | None:
    root = os.environ.get(MODELS_VARIABLE)
    if not root:
        return None
    canonical = ALIASES.get(name, name)
    for candidate in (name, canonical, hub_id(name)):
        folder = Path(root) / candidate
        if (folder / "config.json").is_file():
            return folder
    return None


def _from_hub(name: str, identifier: str, *, weights: bool = True) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    patterns = PATTERNS if weights else TOKENIZER_PATTERNS
    is_whole = _has_weights if weights else _has_vocabulary
    folder = None
    # The cache first, so that a cached model needs no network.
    for offline in (True,) if constants.HF_HUB_OFFLINE else (True, False):
        try:
            folder = Path(
                snapshot_download(identifier, allow_patterns=patterns, local_files_only=offline)
            )
            if weights and not _has_weights(folder) and not offline:
                # Older repositories have only a pickle; it is read without executing its code.
                snapshot_download(identifier, allow_patterns=["pytorch_model.bin"])
            if is_whole(folder):
                return folder
        except Exception:  # the library has many errors for a missing network or permission
            continue
    place = "" if name != identifier else "no such folder, "
    raise CheckpointError(
        f"{name}: {place}not in the local cache, and the Hub cannot be reached; on a machine with "
        f"network access run `hf download {identifier}`, or put its folder in ${MODELS_VARIABLE}"
    )


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json"))


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(
        (folder / name).is_file()
        for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    )


def is_here(name: str) -> bool:
    """Return whether a named model can be used without network access."""
    if _in_own_folder(name) is not None:
        return True
    from huggingface_hub import try_to_load_from_cache

    identifier = hub_id(name)
    return any(
        isinstance(try_to_load_from_cache(identifier, file), str)
        for file in ("model.safetensors", "pytorch_model.bin")
    )
