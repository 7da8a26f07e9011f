"""Maps NeMo's data sections and tokenizer to our recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bertds.errors import ConfigError
from bertds.training.nemo.keys import Keys, Translation


def map_data(keys: Keys, result: Translation) -> None:
    """Map ``model.train_ds`` and ``model.validation_ds``."""
    # Training data: the path decides everything else, so it comes first.
    train = "model.train_ds."
    path = keys.take(f"{train}data_file")
    if path is None:
        raise ConfigError(f"{keys.source}: {train}data_file is not set; give {train}data_file=PATH")
    data: dict[str, Any] = {"path": str(path)}
    length = keys.number(f"{train}max_seq_length")
    predictions = keys.number(f"{train}max_predictions_per_seq")
    mask = keys.number(f"{train}mask_prob")
    if length is not None:
        data["sequence_length"] = int(length)
    elif predictions is not None:  # HDF5: the file contains its sequence length
        data["sequence_length"] = _hdf5_length(Path(path))
    if predictions is None:
        # NeMo's text datasets mask each token independently, so their number has no limit.
        # 10% more than the expected number rarely cuts any off.
        predictions = math.ceil((mask or 0.15) * data.get("sequence_length", 128) * 1.1)
        result.notes.append(
            f"max_predictions_per_sequence={predictions}, because NeMo sets no limit for text files"
        )
    data["max_predictions_per_sequence"] = int(predictions)
    for theirs, ours in (("mask_prob", "masked_lm_prob"), ("short_seq_prob", "short_seq_prob")):
        value = mask if theirs == "mask_prob" else keys.number(f"{train}{theirs}")
        if value is not None:
            data[ours] = value
    if not result.recipe["model"]["next_sentence"]:
        data["pairs"] = "none"
    # Values that change the result and have only one setting here.
    keys.expect(f"{train}shuffle", (True,), "true: the order is always shuffled")
    keys.expect(f"{train}num_samples", (-1, None), "-1 (prepare a smaller corpus instead)")
    result.recipe["data"] = data
    # Held-out data: a batch size and a number of samples of its own.
    held_out = "model.validation_ds."
    validation: dict[str, Any] = {}
    given = keys.take(f"{held_out}data_file")
    if given is not None:
        validation["path"] = str(given)
    batch = keys.number(f"{held_out}batch_size")
    if batch is not None:
        validation["micro_batch_size"] = int(batch)
    samples = keys.number(f"{held_out}num_samples")
    if samples is not None:
        validation["max_samples"] = 0 if samples < 0 else int(samples)
    # The other properties of a row must agree with the training data: they are one setting here.
    for name in ("max_seq_length", "mask_prob", "short_seq_prob", "max_predictions_per_seq"):
        value = keys.take(f"{held_out}{name}")
        mine = keys.flat.get(f"{train}{name}")
        if value is not None and mine is not None and value != mine:
            keys.fail(f"{held_out}{name}", value, f"{mine}, as in {train}{name}")
    result.recipe["validation"] = validation


def _hdf5_length(path: Path) -> int:
    from bertds.data.formats.hdf5_files import dataset, open_hdf5

    files = [path] if path.is_file() else sorted([*path.glob("*.hdf5"), *path.glob("*.h5")])
    if not files:
        raise ConfigError(f"{path}: contains no HDF5 file")
    with open_hdf5(files[0]) as file:
        found = dataset(files[0], file, "input_ids")
        if found is None or found.ndim != 2:
            raise ConfigError(f"{files[0]}: must contain input_ids with 2 dimensions")
        return int(found.shape[1])


_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "bos_token": "[CLS]",
    "mask_token": "[MASK]",
    "eos_token": "[SEP]",
    "cls_token": "[CLS]",
}


def map_tokenizer(keys: Keys, result: Translation) -> None:
    """Map ``model.tokenizer``; prepared data bring their own."""
    prefix = "model.tokenizer."
    # Only WordPiece with BERT's own special tokens is supported.
    keys.take("model.tokenizer")
    kind = keys.take(f"{prefix}tokenizer_name", default="")
    model = keys.take(f"{prefix}tokenizer_model")
    if kind == "sentencepiece" or model is not None:
        keys.fail(f"{prefix}tokenizer_name", kind or model, "WordPiece (vocab_file)")
    keys.expect(f"{prefix}special_tokens", (None,), "null: the vocabulary's own")
    for token, usual in _SPECIAL.items():
        keys.expect(f"{prefix}special_tokens.{token}", (usual, None), usual)
    # The vocabulary: a file, or the name of a model that includes one.
    file = keys.take(f"{prefix}vocab_file")
    lower = keys.take(f"{prefix}do_lower_case")
    name = keys.take(f"{prefix}pretrained_model_name")
    name = name or keys.flat.get("model.language_model.pretrained_model_name")
    if kind and kind not in ("nemobert", "bert", "word", "nemo_bert") and "/" not in kind:
        name = name or kind  # in newer files tokenizer_name is the model's name
    data = result.recipe["data"]
    if lower is not None:
        data["lower_case"] = bool(lower)
    if (Path(data["path"]) / "manifest.json").is_file():
        return  # data prepared by data_prep contain their vocabulary
    if file is None and name is not None:
        from bertds.data.model_names import resolve

        file = resolve(name)
        if lower is None:
            data["lower_case"] = "uncased" in str(name)
    if file is None:
        raise ConfigError(f"{keys.source}: no vocabulary; give {prefix}vocab_file=vocab.txt")
    data["vocab"] = str(file)
