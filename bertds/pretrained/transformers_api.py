"""Pre-trained models by name: the published BERTs, runs, checkpoints and Hugging Face folders.

    model = bertds.from_pretrained("bert-base-uncased")        # a transformers model
    model = bertds.from_pretrained("runs/phase2", task="fill-mask")

Accepted names: :mod:`bertds.data.model_names`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertds.data.model_names import ALIASES, MODELS, resolve
from bertds.data.vocabulary_file import has_tokenizer, vocabulary_file
from bertds.errors import CheckpointError, ConfigError, short_reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bertds.pretrained.load import PretrainedModel

TASK_CLASSES = {
    "pretraining": "BertForPreTraining",
    "fill-mask": "AutoModelForMaskedLM",
    "encoder": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "ner": "AutoModelForTokenClassification",
    "qa": "AutoModelForQuestionAnswering",
}
TASK_ALIASES = {
    "masked-lm": "fill-mask",
    "feature-extraction": "encoder",
    "sentence-similarity": "encoder",
    "sentiment-analysis": "text-classification",
    "sequence-classification": "text-classification",
    "token-classification": "ner",
    "question-answering": "qa",
}
"""The names of transformers' pipelines and classes."""


_TORCHAO_NOISE = {
    "torchao": "Failed to load ",
    "torch.utils._pytree": "register_constant() on Enum subclasses is deprecated",
}
"""Logger -> text of the messages that are dropped."""


def list_available_models() -> list[str]:
    """Return the names that :func:`from_pretrained` accepts; ``bertds models`` describes them."""
    return [*MODELS, *ALIASES]


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
    from bertds.pretrained.export import export

    with tempfile.TemporaryDirectory(prefix="bertds-") as folder:
        yield export(path, Path(folder) / "model")


def open_model(name_or_path: Path | str, *, average: bool = True) -> PretrainedModel:
    """Load a model as this project's own class, with its manifest.

    Args:
        name_or_path: a name of ``bertds models``, a Hub id, a run, a checkpoint or a folder.
        average: load the moving average of the weights, if a run has one.
    """
    from bertds.pretrained.load import load_pretrained

    return load_pretrained(resolve(name_or_path), average=average)


def from_pretrained(name_or_path: Path | str, task: str = "pretraining", **arguments: Any) -> Any:
    """Load a model as a transformers model.

    Args:
        name_or_path: a name of ``bertds models``, a Hub id, a run, a checkpoint or a folder.
        task: the head: pretraining, fill-mask, encoder, text-classification, ner, qa, or
            transformers' name (token-classification, question-answering ...).
        arguments: arguments of the class's own ``from_pretrained`` (``num_labels=3``, ...).

    Raises:
        CheckpointError: there is no such model.
        ConfigError: there is no such task.
    """
    from bertds.pretrained.hf_config import read_config

    given, task = task, TASK_ALIASES.get(task, task)
    if task not in TASK_CLASSES:
        allowed = ", ".join([*TASK_CLASSES, *TASK_ALIASES])
        raise ConfigError(f"task={given!r}: unknown; allowed: {allowed}")
    with as_hugging_face_folder(name_or_path) as folder:
        class_name = TASK_CLASSES[task]
        if task == "pretraining" and read_config(folder).get("model_type") == "modernbert":
            class_name = "ModernBertForMaskedLM"  # its only pre-training head
        return load_transformers(folder, class_name, **arguments)


def load_transformers(folder: Path, class_name: str, **arguments: Any) -> Any:
    """Load a transformers class from a folder, without messages and without running its code.

    By default transformers asks on the terminal whether to run a folder's own code (``auto_map``).
    It would take the first line of the texts to predict for the answer.

    Raises:
        CheckpointError: the model cannot be loaded, or only by running its own code.
    """
    quiet_torchao()
    import transformers

    from bertds.model.build import check_size
    from bertds.pretrained.hf_config import read_config

    # An absurd size in a hostile config must be refused before memory is allocated.
    if (folder / "config.json").is_file() and class_name != "AutoTokenizer":
        check_size(read_config(folder), f"{folder / 'config.json'}: ")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    chosen = getattr(transformers, class_name)
    try:
        return chosen.from_pretrained(
            folder, **{**arguments, "local_files_only": True, "trust_remote_code": False}
        )
    except Exception as error:  # whatever a damaged file makes the libraries raise
        reason = short_reason(error)
        if "trust_remote_code" in str(error):
            reason = (
                "its config requires custom code (auto_map), and model code is never run "
                "(trust_remote_code=False)"
            )
        raise CheckpointError(f"{folder}: cannot be loaded as {class_name} ({reason})") from error


def quiet_torchao() -> None:
    """Drop two warnings that torchao logs while transformers imports it, since it is not used here.

    One is about its compiled kernels for other builds of torch, the other about a deprecated use of
    torch. Its other messages and its exceptions stay. FP8 training does not use this function.
    """
    for name, begin in _TORCHAO_NOISE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _WithoutNoise) for one in logger.filters):
            logger.addFilter(_WithoutNoise(begin))


class _WithoutNoise(logging.Filter):
    """Drops messages that contain a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()


def load_tokenizer(name_or_path: Path | str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer (transformers).

    Raises:
        CheckpointError: there is none next to the model.
        DataError: its files contain different vocabularies.
    """
    with as_hugging_face_folder(name_or_path) as folder:
        return tokenizer_of(folder)


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Return tokens in readable form: WordPiece tokens unchanged, others decoded to text.

    Args:
        tokenizer: a fast tokenizer of transformers.
        ids: ids of single tokens.
    """
    tokens = [str(tokenizer.convert_ids_to_tokens(i)) for i in ids]
    if type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece":
        return tokens
    texts = [(str(tokenizer.decode([i])), token) for i, token in zip(ids, tokens, strict=True)]
    return [text.strip() or text or token for text, token in texts]


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hugging Face folder; see :func:`load_tokenizer`."""
    if not has_tokenizer(folder):
        raise CheckpointError(f"{folder}: neither vocab.txt nor tokenizer.json found")
    vocabulary_file(folder)  # refuses two files that contradict each other
    return load_transformers(folder, "AutoTokenizer", use_fast=True)
