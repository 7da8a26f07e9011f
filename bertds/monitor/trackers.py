"""The trackers of a run: a progress display (progress.py), Weights & Biases, TensorBoard.

Each receives the lines of ``metrics.jsonl``. One that fails never stops the run; see
:class:`Service`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from bertds.config.recipe import Config
from bertds.errors import ConfigError, short_reason
from bertds.monitor import health
from bertds.monitor.metrics import Listener
from bertds.monitor.metrics_file import FILE
from bertds.monitor.notify import Notifier
from bertds.monitor.progress import ProgressBar, ProgressLines, TimeLeft
from bertds.monitor.remaining_time import later_phases
from bertds.monitor.run_files import read_metrics
from bertds.monitor.tracked_values import flat
from bertds.monitor.wandb_tracker import NO_KEY, WandbTracker, has_key
from bertds.system.logs import log


class Tracker(Listener, Protocol):
    """A listener that is closed at the end of the run."""

    def close(self) -> None:
        """Finish; there are no more lines."""


def start_trackers(
    config: Config,
    settings: dict[str, Any],
    run_dir: Path,
    notifier: Notifier | None = None,
    step: int = 0,
) -> list[Tracker]:
    """Build the trackers that the recipe asks for (main process only).

    Args:
        config: the recipe.
        settings: all resolved settings, for the trackers' records.
        run_dir: the run folder.
        notifier: is notified of what looks wrong.
        step: at which the run begins or resumes.

    Returns:
        Those that could be started; the log names a service that could not.
    """
    trackers: list[Tracker] = []
    style = config.log.progress
    if style == "auto":
        style = "bar" if sys.stderr.isatty() else "lines"
    name = config.run.name or run_dir.name
    left = TimeLeft(
        config.schedule.total_steps,
        later_phases(config, int(settings["model"]["vocab_size"])),
        int(settings["world_size"]),
        clock_hours=config.schedule.clock_hours,
        seconds=read_metrics(run_dir / FILE).seconds,
    )
    if style == "bar":
        trackers.append(ProgressBar(name, left, step=step))
    elif style == "lines":
        trackers.append(ProgressLines(left))
    trackers.append(HealthWarnings(notifier))
    services: list[tuple[str, Callable[[], Tracker]]] = []
    if config.tracking.wandb != "off":
        services.append(("Weights & Biases", lambda: WandbTracker(config, settings, run_dir, name)))
    if config.tracking.tensorboard:
        services.append(("TensorBoard", lambda: TensorBoardTracker(run_dir)))
    for service, start in services:
        try:
            trackers.append(Service(service, start()))
        except Exception as error:  # a tracker's failure must not end the run
            log.warning("%s is not used: %s", service, short_reason(error))
    return trackers


def check_trackers(config: Config, run_dir: Path) -> None:
    """Check that the requested trackers can work, before anything is built.

    A run that has begun is not refused: it continues without them, or offline.

    Args:
        config: the recipe.
        run_dir: the run folder.

    Raises:
        ConfigError: a package is not installed, or there is no key for Weights & Biases.
    """
    if (run_dir / "config.yaml").is_file():
        return
    tracking = config.tracking
    if tracking.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError(
            "tracking.tensorboard=true requires the package tensorboard; install it with: pip "
            "install 'bertds[tensorboard]'"
        )
    if tracking.wandb != "off" and find_spec("wandb") is None:
        raise ConfigError(
            f"tracking.wandb={tracking.wandb} requires the package wandb; install it with: pip "
            "install 'bertds[wandb]'"
        )
    if tracking.wandb == "online" and not has_key():
        raise ConfigError(f"tracking.wandb=online: {NO_KEY}, or set tracking.wandb=offline")


class HealthWarnings:
    """Logs what looks wrong, each finding once until it disappears."""

    def __init__(self, notifier: Notifier | None = None) -> None:
        self._notifier = notifier
        self._train: list[dict[str, Any]] = []
        self._held_out: list[dict[str, Any]] = []
        self._said: set[str] = set()

    def line(self, values: dict[str, Any]) -> None:
        """Check the metrics with a new line; warn of new findings."""
        if "split" in values:  # there are few, and old ones count too
            self._held_out.append(values)
        else:
            self._train = [*self._train[-5 * health.RECENT :], values]
        lines = [*self._held_out, *self._train]
        found = {finding.name: finding for finding in health.findings(lines)}
        for name in found.keys() - self._said:
            log.warning("step %d: %s", values["step"], found[name])
            if self._notifier is not None:
                self._notifier.send("warning", values["step"], str(found[name]))
        self._said = set(found)

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


class Service:
    """A tracker whose failure never ends the run: it is a warning, and no more lines follow.

    Args:
        name: of the service, for the warning.
        tracker: stores the lines.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker = tracker
        self._failed = False

    def line(self, values: dict[str, Any]) -> None:
        """Pass on one metric line, unless an earlier one failed."""
        if self._failed:
            return
        try:
            self._tracker.line(values)
        except Exception as error:  # a tracker has many kinds
            self._failed = True
            log.warning(
                "%s failed and gets no further metrics: %s", self._name, short_reason(error)
            )

    def close(self) -> None:
        """Close the tracker."""
        try:
            self._tracker.close()
        except Exception as error:
            log.warning("%s could not be closed: %s", self._name, short_reason(error))


class TensorBoardTracker:
    """TensorBoard event files in the run folder's ``tensorboard/``."""

    def __init__(self, run_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def line(self, values: dict[str, Any]) -> None:
        """Write one metric line."""
        for key, value in flat(values).items():
            self._writer.add_scalar(key, value, values["step"])

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()
