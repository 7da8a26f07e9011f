"""Finds the checkpoint of a run with the lowest held-out loss."""

from __future__ import annotations

from pathlib import Path

from bertds.checkpoint.find import step_folders
from bertds.checkpoint.manifest import read_manifest
from bertds.errors import CheckpointError
from bertds.monitor.metrics_file import FILE
from bertds.monitor.run_files import at, read_metrics


def held_out_losses(checkpoints: Path) -> dict[str, float]:
    """Return the masked-LM loss on held-out data, in nats, of each checkpoint, newest first.

    Checkpoints of steps that were not validated are left out.

    Args:
        checkpoints: the folder of the ``step_*`` folders; the run's metrics are next to it. Without
            metrics, the checkpoints themselves contain the loss of the best one.
    """
    measured: dict[int, float] = {}
    for line in read_metrics(checkpoints.parent / FILE).lines:
        loss = line.get("mlm_loss")
        if line.get("split") == "validation" and loss is not None:
            measured[line["step"]] = loss
    found = {}
    for folder in step_folders(checkpoints):
        try:
            manifest = read_manifest(folder)
        except CheckpointError:
            continue
        step, loss = at(manifest, "step", int, -1), None
        if at(manifest, "state.best_step", int, -2) == step:
            loss = at(manifest, "state.best_mlm_loss", float, None)
        loss = measured.get(step, loss)  # the metrics of a resumed run end at its checkpoint
        if loss is not None:
            found[folder.name] = loss
    return found


def best_of(losses: dict[str, float]) -> str:
    """Return the name with the lowest loss, the first one of equals."""
    return min(losses, key=lambda name: losses[name])


def best_checkpoint(run: Path) -> Path:
    """Return the checkpoint of a run with the lowest held-out loss, the newest one of equals.

    Args:
        run: the run folder.

    Raises:
        CheckpointError: there is no run, or no checkpoint was saved at a step that was validated.
    """
    checkpoints = run / "checkpoints"
    if not checkpoints.is_dir():
        raise CheckpointError(f"{run}: not a run folder with checkpoints, which --best requires")
    losses = held_out_losses(checkpoints)
    if not losses:
        raise CheckpointError(
            f"{run}: no checkpoint was saved at a validated step; set checkpoint.keep_best=true "
            "to keep the best one of a run"
        )
    return checkpoints / best_of(losses)
