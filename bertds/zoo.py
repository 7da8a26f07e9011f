"""Pre-trained models by name: the published BERTs, runs, checkpoints and Hugging Face folders.

    model = bertds.from_pretrained("bert-base-uncased")        # a transformers model
    model = bertds.from_pretrained("runs/phase2", task="fill-mask")

A name is, in this order: a path; a folder of that name below ``$BERTDS_MODELS``; a name of the
table below or any hub id, looked up in the Hugging Face cache and, unless ``HF_HUB_OFFLINE`` is
set, on the hub.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertds.errors import EXIT_OK, CheckpointError, ConfigError

if TYPE_CHECKING:
    from bertds.trained import Trained

MODELS_VARIABLE = "BERTDS_MODELS"
# Only what is read: no code, and pickles only through weights_only.
PATTERNS = ["config.json", "*.safetensors", "*.safetensors.index.json", "vocab.txt",
            "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Named:
    """A published model."""

    name: str
    hub: str
    about: str


_BASE = "12 layers, width 768, 110 M parameters"
_LARGE = "24 layers, width 1024, 340 M parameters"
_SMALL_NAMES = {(2, 128): "bert-tiny", (4, 256): "bert-mini", (4, 512): "bert-small",
                (8, 512): "bert-medium"}  # fmt: skip
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
        Named("bert-large-uncased-whole-word-masking",
              "google-bert/bert-large-uncased-whole-word-masking", _LARGE),
        Named("bert-large-cased-whole-word-masking",
              "google-bert/bert-large-cased-whole-word-masking", _LARGE),
        Named("bert-base-multilingual-cased", "google-bert/bert-base-multilingual-cased",
              "12 layers, width 768, 104 languages"),
        *(
            Named(f"bert_uncased_L-{layers}_H-{width}_A-{width // 64}",
                  f"google/bert_uncased_L-{layers}_H-{width}_A-{width // 64}",
                  f"{layers} layers, width {width}"
                  + (f"; {_SMALL_NAMES[layers, width]}" if (layers, width) in _SMALL_NAMES else ""))
            for layers, width in _SMALL
        ),
    ]
}  # fmt: skip

ALIASES = {
    # NeMo's names
    "bertbaseuncased": "bert-base-uncased",
    "bertlargeuncased": "bert-large-uncased",
    **{
        short: f"bert_uncased_L-{layers}_H-{width}_A-{width // 64}"
        for (layers, width), short in _SMALL_NAMES.items()
    },
}

TASK_CLASSES = {
    "pretraining": "BertForPreTraining",
    "fill-mask": "AutoModelForMaskedLM",
    "encoder": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "ner": "AutoModelForTokenClassification",
    "qa": "AutoModelForQuestionAnswering",
}


def hub_id(name: str) -> str:
    """Return the hub id of a name, an alias or a hub id."""
    name = ALIASES.get(name, name)
    return MODELS[name].hub if name in MODELS else name


def resolve(name_or_path: Path | str) -> Path:
    """Return the folder (or file) that holds a model.

    Raises:
        CheckpointError: it is neither a path nor cached, and cannot be fetched; the message has
            the command that fetches it.
    """
    path = Path(name_or_path)
    if path.exists():
        return path
    name = str(name_or_path)
    folder = _in_own_folder(name)
    if folder is not None:
        return folder
    identifier = hub_id(name)
    known = ALIASES.get(name, name) in MODELS
    if not known and (identifier.count("/") != 1 or identifier.startswith((".", "/", "~"))):
        from difflib import get_close_matches

        close = get_close_matches(name, [*MODELS, *ALIASES], n=1)
        hint = f"; did you mean {close[0]}?" if close else "; `bertds models` lists the names"
        raise CheckpointError(f"{name}: no such folder, and no model of that name{hint}")
    return _from_hub(name, identifier)


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


def _from_hub(name: str, identifier: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    folder = None
    for offline in (True,) if constants.HF_HUB_OFFLINE else (True, False):
        try:
            folder = Path(
                snapshot_download(identifier, allow_patterns=PATTERNS, local_files_only=offline)
            )
            if not _has_weights(folder) and not offline:
                # Older repositories have only a pickle; it is read without running its code.
                snapshot_download(identifier, allow_patterns=["pytorch_model.bin"])
            if _has_weights(folder):
                return folder
        except Exception:  # whatever the library makes of a missing network, name or permission
            continue
    raise CheckpointError(
        f"{name}: not in the local cache and the hub cannot be reached; on a machine with a "
        f"network run `hf download {identifier}`, or put its folder below ${MODELS_VARIABLE}"
    )


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(
        (folder / name).is_file()
        for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    )


@contextmanager
def as_hugging_face_folder(name_or_path: Path | str) -> Iterator[Path]:
    """Yield a Hugging Face folder of any model; a run is exported to a temporary one.

    Raises:
        CheckpointError: there is no such model.
    """
    path = resolve(name_or_path)
    if (path / "config.json").is_file():
        yield path
        return
    from bertds.export import export

    with tempfile.TemporaryDirectory(prefix="bertds-") as folder:
        yield export(path, Path(folder) / "model")


def open_model(name_or_path: Path | str) -> Trained:
    """Load a model as this project's own class, with what is known of it."""
    from bertds.trained import open_trained

    return open_trained(resolve(name_or_path))


def from_pretrained(name_or_path: Path | str, task: str = "pretraining", **arguments: Any) -> Any:
    """Load a model as a transformers model.

    Args:
        name_or_path: a name of ``bertds models``, a hub id, a run, a checkpoint or a folder.
        task: pretraining, fill-mask, encoder, text-classification, ner or qa: which head.
        arguments: for the class's own ``from_pretrained`` (``num_labels=3``, ...).

    Raises:
        CheckpointError: there is no such model.
        ConfigError: there is no such task.
    """
    if task not in TASK_CLASSES:
        raise ConfigError(f"task={task!r}: unknown; allowed: {', '.join(TASK_CLASSES)}")
    with as_hugging_face_folder(name_or_path) as folder:
        return load_transformers(folder, TASK_CLASSES[task], **arguments)


def load_transformers(folder: Path, class_name: str, **arguments: Any) -> Any:
    """Load a transformers class from a folder: quiet, no pickled code, errors in one line."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return getattr(transformers, class_name).from_pretrained(
            folder, local_files_only=True, **arguments
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: cannot be loaded as {class_name} ({reason})") from error


def load_tokenizer(name_or_path: Path | str) -> Any:
    """Load a model's tokenizer (transformers).

    Raises:
        CheckpointError: there is none beside the model.
    """
    with as_hugging_face_folder(name_or_path) as folder:
        return tokenizer_of(folder)


def tokenizer_of(folder: Path) -> Any:
    """Load the tokenizer of a Hugging Face folder; see :func:`load_tokenizer`."""
    if not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise CheckpointError(f"{folder}: no vocab.txt and no tokenizer.json")
    return load_transformers(folder, "AutoTokenizer", use_fast=True)


def is_here(name: str) -> bool:
    """Return whether a named model can be used without a network."""
    if _in_own_folder(name) is not None:
        return True
    from huggingface_hub import try_to_load_from_cache

    identifier = hub_id(name)
    return any(
        isinstance(try_to_load_from_cache(identifier, file), str)
        for file in ("model.safetensors", "pytorch_model.bin")
    )


def main(argv: list[str] | None = None) -> int:
    """List the named models."""
    parser = argparse.ArgumentParser(
        prog="bertds models",
        description="List the models that --model, init.from and bertds.from_pretrained know by "
        "name. A run, a checkpoint, a Hugging Face folder or a hub id is taken too.",
    )
    parser.add_argument("--names", action="store_true", help="print the names alone")
    args = parser.parse_args(argv)
    if args.names:
        print("\n".join([*MODELS, *ALIASES]))
        return EXIT_OK
    of_alias: dict[str, list[str]] = {}
    for alias, name in ALIASES.items():
        of_alias.setdefault(name, []).append(alias)
    width = max(map(len, MODELS))
    for named in MODELS.values():
        here = "local" if is_here(named.name) else "-"
        aliases = f"  = {', '.join(of_alias[named.name])}" if named.name in of_alias else ""
        print(f"{named.name:<{width}}  {here:<5}  {named.about}{aliases}")
    print("\nlocal: in the cache or below $BERTDS_MODELS; others are fetched from the hub when "
          "used (hf download HUB_ID)", file=sys.stderr)  # fmt: skip
    return EXIT_OK
