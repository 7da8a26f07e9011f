"""Checks everything that the stages of a pipeline need, before the first one runs for hours."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from bertds.config.load import to_dict
from bertds.config.recipe import Config
from bertds.data.vocabulary import load_tokenizer_info
from bertds.errors import DataError
from bertds.pipeline.stages import Phase


def check_pipeline(
    phases: list[Phase],
    overrides: list[str],
    *,
    processes: int,
    vocab: str | None,
    vocab_size: int,
    model: Path,
    here: bool = True,
) -> None:
    """Check recipes, JSONs, vocabulary, sizes and folders of all phases.

    Args:
        phases: in order; each except the first starts from the previous one.
        overrides: KEY=VALUE assignments for the recipes.
        processes: number of ranks; 0 = the GPUs of this machine, or 1; unknown on other machines.
        vocab: the given vocabulary, or None if one is trained.
        vocab_size: of the vocabulary that is trained.
        model: the folder of the exported model.
        here: whether this machine will train; its GPUs and memory count only then.

    Raises:
        UserError: the first error that a later stage would raise, with the same message.
    """
    import torch

    from bertds.distributed.rank_info import RankInfo
    from bertds.monitor.trackers import check_trackers
    from bertds.pretrained.output_folder import check_output
    from bertds.training.setting_changes import changes, is_done
    from bertds.training.starting_point import check_architecture
    from bertds.training.will_it_fit import check_fits

    if vocab:
        vocab_size = load_tokenizer_info(vocab).vocab_size
    check_output(model, overwrite=True)
    gpus = torch.cuda.device_count() if here else 0
    count = processes or (gpus or 1 if here else 0)
    before: tuple[Phase, Config] | None = None
    for phase in phases:
        config, settings = phase.read(overrides)
        changes(phase.run, config, settings.values)
        with suppress(DataError):  # preparation will write what is missing
            is_done(phase.run, config, settings.values)
        if here:
            check_trackers(config, phase.run)
        if count and not settings.finds_micro_batch:
            settings.batch_plan(count)
        # A phase can only start from a model with the same architecture and vocabulary.
        if before is not None:
            theirs, ours = to_dict(before[1].model), to_dict(config.model)
            sizes = {"vocab_size": vocab_size}
            check_architecture(before[0].run, {**theirs, **sizes}, {**ours, **sizes}, config)
        if here and not gpus and not (phase.run / "DONE").is_file():
            # On GPUs each phase checks at its own start: reading their memory would use some of it.
            check_fits(config, settings, RankInfo(0, 0, count), vocab_size)
        before = phase, config
