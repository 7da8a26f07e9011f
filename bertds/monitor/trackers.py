"""Who watches a run: a progress display (progress.py), Weights & Biases, TensorBoard.

Each takes the same metric lines that ``metrics.jsonl`` holds. A tracker that fails never stops
the run: it says so once and is silent from then on.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any, cast

from bertds.config.recipe import Config
from bertds.errors import ConfigError
from bertds.monitor import health
from bertds.monitor.metrics_file import FILE
from bertds.monitor.progress import ProgressBar, ProgressLines, TimeLeft
from bertds.monitor.remaining_time import later_phases
from bertds.monitor.run_files import read_metrics
from bertds.system.json_fields import parse_json
from bertds.system.logs import log


def start_trackers(config: Config, settings: dict[str, Any], run_dir: Path) -> list[Any]:
    """Build the trackers that the recipe asks for (main process only).

    Args:
        config: the recipe.
        settings: everything that was resolved, for the trackers' records.
        run_dir: the run folder.

    Raises:
        ConfigError: a tracker was asked for whose package is not installed.
    """
    trackers: list[Any] = []
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
        trackers.append(ProgressBar(name, config.schedule.total_steps, left))
    elif style == "lines":
        trackers.append(ProgressLines(config.schedule.total_steps, left))
    trackers.append(Watcher())
    if config.tracking.wandb != "off":
        trackers.append(WandbTracker(config, settings, run_dir, name))
    if config.tracking.tensorboard:
        trackers.append(TensorBoardTracker(run_dir))
    return trackers


class Watcher:
    """Says in words what looks wrong, each thing once until it has gone."""

    def __init__(self) -> None:
        self._train: list[dict[str, Any]] = []
        self._held_out: list[dict[str, Any]] = []
        self._said: set[str] = set()

    def line(self, values: dict[str, Any]) -> None:
        """Take one metric line and warn where it is time to."""
        if "split" in values:  # few, and those of long ago count too
            self._held_out.append(values)
        else:
            self._train = [*self._train[-5 * health.RECENT :], values]
        lines = [*self._held_out, *self._train]
        found = {finding.name: finding for finding in health.findings(lines)}
        for name in found.keys() - self._said:
            log.warning("step %d: %s", values["step"], found[name])
        self._said = set(found)

    def close(self) -> None:
        """Nothing is open."""


def flat(values: dict[str, Any]) -> dict[str, float]:
    """Return a metric line's numbers by the names that trackers know them by: train/mlm_loss."""
    prefix = values.get("split", "train")
    found = {
        f"{prefix}/{key}": value
        for key, value in values.items()
        if isinstance(value, (int, float)) and key != "step"
    }
    for group, triple in values.get("trust_ratio", {}).items():
        names = (f"trust_ratio/{group}_{end}" for end in ("min", "median", "max"))
        found.update((name, value) for name, value in zip(names, triple) if value is not None)
    return found


def saved_checkpoints(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return what stands in a run's checkpoints, by name: step, samples, bytes."""
    found = {}
    for manifest in sorted(run_dir.glob("checkpoints/step_*/manifest.json")):
        facts = parse_json(manifest.read_text(encoding="utf-8"))
        found[manifest.parent.name] = {
            "step": facts.get("step"),
            "samples": facts.get("state", {}).get("samples"),
            "bytes": sum(file.stat().st_size for file in manifest.parent.iterdir()),
        }
    return found


class WandbTracker:
    """Weights & Biases. A resumed run continues the same W&B run: its id is in the run folder."""

    def __init__(self, config: Config, settings: dict[str, Any], run_dir: Path, name: str) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError(
                f"tracking.wandb={config.tracking.wandb} needs the package wandb; install "
                'it with: pip install "bertds[wandb]"'
            ) from None
        os.environ.setdefault("WANDB_SILENT", "true")
        id_file = run_dir / "wandb_id.json"
        if id_file.is_file():
            run_id = parse_json(id_file.read_text(encoding="utf-8"))["id"]
        else:
            run_id = secrets.token_hex(4)  # as long as W&B's own
            id_file.write_text(json.dumps({"id": run_id}) + "\n", encoding="utf-8")
        self._failed = False
        self._run_dir = run_dir
        self._run = wandb.init(
            project=config.tracking.wandb_project,
            name=name,
            id=run_id,
            # Offline runs cannot ask the server; their files carry the same id and are merged
            # when they are synchronised.
            resume="allow" if config.tracking.wandb == "online" else None,
            mode=cast(Any, config.tracking.wandb),
            dir=str(run_dir),
            config=settings,
            settings=wandb.Settings(console="off"),
        )

    def line(self, values: dict[str, Any]) -> None:
        """Send one metric line."""
        if self._failed:
            return
        try:
            self._run.log(flat(values), step=values["step"])
        except Exception as error:  # a tracker's trouble must not cost the run
            self._failed = True
            log.warning("Weights & Biases stopped taking metrics: %s", error)

    def close(self) -> None:
        """Record which checkpoints there are, and finish the W&B run."""
        try:
            self._run.summary["checkpoints"] = saved_checkpoints(self._run_dir)
            self._run.finish()
        except Exception as error:  # a tracker's trouble must not cost the run
            log.warning("Weights & Biases did not finish: %s", error)


class TensorBoardTracker:
    """TensorBoard event files in the run folder's ``tensorboard/``."""

    def __init__(self, run_dir: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "tracking.tensorboard=true needs the package tensorboard; install it with: "
                'pip install "bertds[tensorboard]"'
            ) from None
        self._failed = False
        self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def line(self, values: dict[str, Any]) -> None:
        """Write one metric line."""
        if self._failed:
            return
        try:
            for key, value in flat(values).items():
                self._writer.add_scalar(key, value, values["step"])
        except Exception as error:  # a tracker's trouble must not cost the run
            self._failed = True
            log.warning("TensorBoard stopped taking metrics: %s", error)

    def close(self) -> None:
        """Flush and close the files."""
        try:
            self._writer.close()
        except Exception as error:  # a tracker's trouble must not cost the run
            log.warning("TensorBoard did not finish: %s", error)
