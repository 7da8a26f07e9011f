"""Where the initial weights come from: its newest checkpoint, another run, a folder, or random."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertds.checkpoint.find import locate, newest_good
from bertds.checkpoint.format import CheckpointReader
from bertds.checkpoint.train_state import TrainState
from bertds.config.load import to_dict
from bertds.config.recipe import Config
from bertds.data.model_names import path_of
from bertds.data.sources.base import Source
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info, warn_of_other_rules
from bertds.data.vocabulary_file import has_tokenizer
from bertds.display.words import count, listed
from bertds.engine.interface import TrainingEngine
from bertds.errors import CheckpointError, ConfigError, DataError
from bertds.model.build import PreTrainingModel
from bertds.pretrained import hf_config, weight_files
from bertds.system.logs import log

# Two models with equal values of these keys have the same tensors with the same meaning.
# The style comes first, since it explains other differences: the first one found is reported.
ARCHITECTURE = (
    "style",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_act",
    "next_sentence",
    "vocab_size",
    "local_attention",
    "global_attn_every_n_layers",
)
ONLY_BERT = ("max_position_embeddings", "type_vocab_size")
"""A modern encoder has no table for these: a longer phase 2 may start from a shorter phase 1."""
ONLY_MODERN = ("local_attention", "global_attn_every_n_layers")


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """A checkpoint to begin from."""

    reader: CheckpointReader
    is_own: bool
    """Whether it is this run's own: then everything is restored, not only weights and moments."""


def start_weights(
    config: Config, model: PreTrainingModel, tokenizer: TokenizerInfo, checkpoints: Path
) -> StartingPoint | None:
    """Find the start, and load weights of a Hugging Face folder into the model right away.

    Args:
        config: the recipe.
        model: the new model with random weights.
        tokenizer: the data's tokenizer.
        checkpoints: the run's own checkpoint folder.

    Raises:
        CheckpointError: what ``init.from`` names is missing, damaged, or of another architecture
            or vocabulary.
    """
    # A checkpoint of this run has precedence over init.from.
    own = newest_good(checkpoints)
    wanted = {**to_dict(config.model), "vocab_size": tokenizer.vocab_size}
    if own is not None:
        _check_tokenizer(own, tokenizer)
        return StartingPoint(own, True)
    if not config.init.from_:
        return None
    # A folder in Hugging Face's format has weights but no state of a run.
    path = path_of(config.init.from_)
    if (path / "config.json").is_file():
        theirs, vocab_size = hf_config.config_of(path)
        check_architecture(path, {**to_dict(theirs), "vocab_size": vocab_size}, wanted, config)
        _check_vocabulary_file(path, tokenizer)
        report = weight_files.load_folder(model, path)
        if report.missing and config.init.heads == "require":
            raise CheckpointError(
                f"{path}: contains no weights for {listed(report.missing, 3)}; "
                "set init.heads=allow_missing to initialize those at random"
            )
        missing = count(len(report.missing), "tensor")
        log.info("weights from %s (%s initialized at random)", path, missing)
        return None
    reader = locate(path)
    check_architecture(path, reader.field("model").mapping(), wanted, config)
    _check_tokenizer(reader, tokenizer)
    return StartingPoint(reader, False)


def check_architecture(
    path: Path, theirs: dict[str, Any], ours: dict[str, Any], config: Config
) -> None:
    """Check that weights of one model fit another.

    Args:
        path: where they come from, for the message.
        theirs: the recipe's model section of the weights, with ``vocab_size``.
        ours: that of this run.
        config: the recipe of this run.

    Raises:
        CheckpointError: names the first key that differs.
    """
    # Keys that may differ, because no tensor depends on them or missing ones are initialized.
    free = {"next_sentence"} if config.init.heads == "allow_missing" else set()
    free.update(ONLY_BERT if config.model.style == "modern" else ONLY_MODERN)
    # Checkpoints from before `style` existed lack it and contain a BERT.
    theirs = {"style": "bert", **theirs}
    for key in ARCHITECTURE:
        if key not in free and theirs.get(key) != ours[key]:
            raise CheckpointError(
                f"{path}: its {key} is {theirs.get(key)}, this run's is {ours[key]}; weights can "
                "only be loaded from a model with the same architecture and vocabulary"
            )


def check_moments(config: Config, optimizer: str, start: StartingPoint | None) -> None:
    """Refuse Muon's moments for another optimizer.

    Muon keeps no second moment of hidden matrices, and its momentum is not an average: Adam's first
    update would be hundreds of times too large. Adam, AdamW and LAMB can use each other's moments,
    and Muon can use theirs.

    Args:
        config: the recipe.
        optimizer: the kind that this run trains with.
        start: where it begins.

    Raises:
        ConfigError: names the setting that leaves the moments out.
    """
    if start is None or start.is_own or config.init.optimizer_state == "none":
        return
    theirs = start.reader.manifest.get("deepspeed", {}).get("optimizer", {}).get("type", "")
    if theirs.lower() == "muon" and optimizer != "Muon":
        raise ConfigError(
            f"{start.reader.folder}: trained with Muon, whose moments {optimizer} cannot use; set "
            f"init.optimizer_state=none, found {config.init.optimizer_state}"
        )


def _check_tokenizer(reader: CheckpointReader, tokenizer: TokenizerInfo) -> None:
    theirs = reader.field("tokenizer").mapping()
    if theirs.get("fingerprint") != tokenizer.fingerprint:
        raise CheckpointError(
            f"{reader.folder}: trained with vocabulary {str(theirs.get('fingerprint'))[:12]} "
            f"({theirs.get('vocab_size')} tokens), but the data has {tokenizer.fingerprint[:12]} "
            f"({tokenizer.vocab_size} tokens); prepare the data with the vocabulary of the "
            "checkpoint"
        )


def _check_vocabulary_file(path: Path, tokenizer: TokenizerInfo) -> None:
    # A foreign folder without a tokenizer, or data without a vocabulary: nothing to compare.
    if not tokenizer.files or not has_tokenizer(path):
        return
    theirs = load_tokenizer_info(path)
    if theirs.vocabulary() != tokenizer.vocabulary():
        raise CheckpointError(
            f"{path}: the vocabulary differs from that of the data, {tokenizer.main_file}"
        )
    warn_of_other_rules(path, theirs, tokenizer)


def check_alike(engine: TrainingEngine, start: StartingPoint | None, source: Source) -> None:
    """Check that all ranks begin from the same checkpoint and read the same data. Collective.

    Machines that do not share the run folder would each find their own checkpoint, and silently
    train a model composed of two.

    Raises:
        CheckpointError: a rank would start from a different checkpoint.
        DataError: a rank reads different data.
    """
    begin = "the beginning"
    if start is not None:
        manifest = start.reader.manifest
        begin = f"{start.reader.folder.name} ({manifest['sha256'][:12]})"
    mine = (socket.gethostname(), begin, _facts(source.describe()))
    # Gathered in full rather than as a hash, so that the error can name hosts and differences.
    everybody = engine.gather_objects(mine)
    main_host, main_begin, main_facts = everybody[0]
    for rank, (host, theirs, facts) in enumerate(everybody):
        if theirs != main_begin:
            raise CheckpointError(
                f"rank 0 on {main_host} would start from {main_begin}, rank {rank} on {host} from "
                f"{theirs}; all processes must see the same run folder"
            )
        if facts != main_facts:
            raise DataError(
                f"rank {rank} on {host} reads different data from rank 0 on {main_host}: "
                f"{_difference(facts, main_facts)}; data.path must have the same contents on all "
                "machines"
            )


def warn_of_other_data(start: StartingPoint | None, source: Source) -> None:
    """Warn if the data differs from what the run was trained on up to its checkpoint."""
    if start is None or not start.is_own:
        return
    now, before = _facts(source.describe()), _facts(start.reader.field("data").mapping())
    different = _difference(now, before)
    if different:
        log.warning(
            "the data has changed since %s: %s; from now on the order is different, so samples "
            "of this epoch may be repeated or skipped",
            start.reader.folder.name,
            different,
        )


def _facts(described: dict[str, Any]) -> dict[str, Any]:
    """Leave out the location of the data: a copy elsewhere is equally good."""
    return {key: value for key, value in described.items() if key != "path"}


def _difference(now: dict[str, Any], before: dict[str, Any]) -> str:
    """Describe the facts that both have and that differ; "" if there are none."""
    shared = [key for key in now if key in before and now[key] != before[key]]
    return ", ".join(f"{key} {now[key]} instead of {before[key]}" for key in shared[:3])


def continue_run(config: Config, engine: TrainingEngine, start: StartingPoint | None) -> TrainState:
    """Load weights and moments into the engine and return where training resumes.

    A start from another run's checkpoint begins at step 0, with as much of its optimizer state as
    ``init.optimizer_state`` says.
    """
    if start is None:
        return TrainState()
    reader, manifest = start.reader, start.reader.manifest
    keep = config.init.optimizer_state
    if start.is_own:
        steps, moments = manifest["optimizer_steps"], True
    else:
        steps, moments = (manifest["optimizer_steps"] if keep == "all" else 0), keep != "none"
    # The weight average of another run does not describe this run's training.
    averaged = start.is_own and reader.has_average()
    engine.load_pieces(reader.read, optimizer_steps=steps, moments=moments, averaged=averaged)
    if not start.is_own:
        log.info("weights%s from %s", " and moments" if moments else "", reader.folder)
        return TrainState()
    engine.load_extra_state(manifest["engine"])
    state = TrainState(**manifest["state"])  # checked when the manifest was read
    state.restarts += 1
    return state
