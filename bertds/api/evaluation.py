"""``bertds.evaluate``: scores of a model on held-out rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertds.config.load import load_config
from bertds.config.recipe import Config, DataConfig
from bertds.config.suggest import nearest
from bertds.data.sources.open import check_recorded_path
from bertds.errors import ConfigError
from bertds.pretrained.evaluate import evaluate as score_model
from bertds.pretrained.load import PretrainedModel
from bertds.pretrained.transformers_api import open_model


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """The rows on which a model is scored; None = as in the training of the run."""

    data: str | Path | None = None
    split: str = "validation"
    vocab: str | Path = ""
    sequence_length: int | None = None
    max_predictions: int | None = None
    whole_words: bool = False
    batch: int = 32
    max_samples: int = 0
    average: bool = True


def evaluate(model: str | Path, data: str | Path | None = None, **options: Any) -> dict[str, float]:
    """Score a model on held-out rows.

    Args:
        model: a run, a checkpoint, a Hugging Face folder or a name of ``bertds models``.
        data: prepared data; None = the run's own (``validation.path``, if it is set and the split
            is "validation").
        options: ``split`` ("validation" or "train"), ``vocab`` (a vocab.txt, for data without a
            tokenizer), ``sequence_length`` and ``max_predictions`` (default: the run's, or 128 and
            20), ``whole_words`` (mask all pieces of a word together), ``batch`` (rows per forward
            pass), ``max_samples`` (maximum number of rows; 0 = all), ``average`` (False = the last
            weights instead of their moving average).

    Returns:
        ``loss`` and ``mlm_loss`` in nats, ``mlm_accuracy`` and more, see
        :func:`bertds.pretrained.evaluate.evaluate`.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: an option is unknown, or no data is given.
        DataError: the split is missing, or its vocabulary is not that of the model.
    """
    return held_out_scores(model, held_out(data=data, **options))[0]


def held_out(**options: Any) -> HeldOut:
    """Return the options of :func:`evaluate` as a dataclass.

    Raises:
        ConfigError: an option is unknown, or a number is too small.
    """
    known = list(HeldOut.__dataclass_fields__)
    for name in options:
        if name not in known:
            raise ConfigError(f"evaluate({name}=...): no such option{nearest(name, known)}")
    rows = HeldOut(**options)
    least = {"sequence_length": 1, "max_predictions": 1, "batch": 1, "max_samples": 0}
    for name, bound in least.items():
        value = getattr(rows, name)
        if value is not None and value < bound:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least {bound}")
    return rows


def held_out_scores(model: str | Path, rows: HeldOut) -> tuple[dict[str, float], DataConfig]:
    """Return the scores, and the data settings with which they were measured."""
    trained = open_model(model, average=rows.average)
    config = _data_config(trained, rows)
    return score_model(trained, config, rows.split, rows.batch, rows.max_samples), config


def _data_config(trained: PretrainedModel, rows: HeldOut) -> DataConfig:
    # The run's own settings are the default, so that the rows are like those of the training.
    recipe = trained.manifest.get("recipe", {})
    values: dict[str, Any] = dict(recipe.get("data", {"pairs": "nsp"}))
    own = values.get("path")
    # As in the training of the run, validation.path takes the place of the validation split.
    if rows.split == "validation":
        own = recipe.get("validation", {}).get("path") or own
    path = rows.data or own
    if not path:
        raise ConfigError("--data is required: a Hugging Face folder does not name its data")
    if not rows.data:
        check_recorded_path(str(path))
    values["path"] = str(path)
    values["vocab"] = str(rows.vocab or values.get("vocab", ""))
    if rows.sequence_length:
        values["sequence_length"] = rows.sequence_length
    if rows.max_predictions:
        values["max_predictions_per_sequence"] = rows.max_predictions
    # A model without a next-sentence head cannot score pairs.
    if not trained.config.next_sentence:
        values["pairs"] = "none"
    if rows.whole_words:
        values["whole_word_masking"] = True
    model = {"next_sentence": trained.config.next_sentence}
    config: Config = load_config({"model": model, "data": values})
    return config.data
