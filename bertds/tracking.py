"""Who watches a run: a progress display, Weights & Biases, TensorBoard.

Each takes the same metric lines that ``metrics.jsonl`` holds. A tracker that fails never stops
the run: it says so once and is silent from then on.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from bertds import health
from bertds.config import Config
from bertds.errors import ConfigError
from bertds.logs import log
from bertds.outlook import LaterPhase, later_phases, seconds_of, speed


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


def in_words(seconds: float) -> str:
    """Return a duration as a person writes it: ``45 s``, ``12 min``, ``3.4 h``, ``2.1 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"


def describe(values: dict[str, Any]) -> str:
    """Return a metric line in words."""
    if "split" in values:
        parts = [f"{values['split']} at step {values['step']}: mlm loss {values['mlm_loss']:.4f}"]
    elif values["loss"] is None:
        return "no finite loss"
    else:
        parts = [f"loss {values['loss']:.4f}", f"mlm {values['mlm_loss']:.4f}"]
    parts.append(f"mlm accuracy {values['mlm_accuracy']:.1%}")
    if "nsp_accuracy" in values:
        parts.append(f"nsp accuracy {values['nsp_accuracy']:.1%}")
    if "lr" in values:
        parts.append(f"lr {values['lr']:.3g}")
        if values.get("grad_norm") is not None:
            parts.append(f"grad norm {values['grad_norm']:.3g}")
        parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
        if "mfu" in values:
            parts.append(f"MFU {values['mfu']:.1%}")
        if "memory_gib" in values:
            parts.append(f"{values['memory_gib']:.2f} GiB")
        if values["stall_seconds"] > 0.01 * values["seconds"]:
            parts.append(f"stalled {values['stall_seconds'] / values['seconds']:.0%}")
    return "  ".join(parts)


class TimeLeft:
    """Says how long a run will still take, by what it took since it was started.

    Args:
        total_steps: of this phase.
        later: the phases that follow.
        devices: processes that share the work.
    """

    def __init__(
        self, total_steps: int, later: Sequence[LaterPhase] = (), devices: int = 1
    ) -> None:
        self.total_steps = total_steps
        self.later = list(later)
        self.devices = devices
        self._begin: tuple[float, int] | None = None
        self._speed = 0.0

    def after(self, values: dict[str, Any]) -> str:
        """Return the time left after a train line in words; empty while nothing is known."""
        now, step = time.monotonic(), values["step"]
        begin, first = self._begin = self._begin or (now, step)
        new = speed(values, self.devices)
        # A window of a few steps can be slow or quick by chance; the plan's end should not jump.
        self._speed = 0.8 * self._speed + 0.2 * new if self._speed and new else new or self._speed
        if step <= first:
            return ""
        phase = (now - begin) / (step - first) * (self.total_steps - step)
        if not self.later or not self._speed:
            return f"{in_words(phase)} left"
        whole = phase + seconds_of(self.later, self._speed)
        number = len(self.later)
        names = "the next phase" if number == 1 else f"the next {number} phases"
        return f"{in_words(phase)} left, {in_words(whole)} with {names}"


class ProgressLines:
    """Plain lines, for log files and pipes: train lines at most every few seconds."""

    def __init__(
        self, total_steps: int, left: TimeLeft | None = None, least_seconds: float = 5.0
    ) -> None:
        self.total_steps = total_steps
        self.least_seconds = least_seconds
        self._left = left or TimeLeft(total_steps)
        self._last = 0.0

    def line(self, values: dict[str, Any]) -> None:
        """Show one metric line."""
        if "split" in values:
            log.info("%s", describe(values))
            return
        now, step, left = time.monotonic(), values["step"], self._left.after(values)
        if now - self._last >= self.least_seconds or step == self.total_steps:
            self._last = now
            tail = f"  {left}" if left else ""
            log.info("step %d/%d  %s%s", step, self.total_steps, describe(values), tail)

    def close(self) -> None:
        """Nothing is open."""


class Watcher:
    """Says in words what looks wrong, each thing once until it has gone."""

    def __init__(self) -> None:
        self._lines: list[dict[str, Any]] = []
        self._said: set[str] = set()

    def line(self, values: dict[str, Any]) -> None:
        """Take one metric line and warn where it is time to."""
        self._lines = [*self._lines[-5 * health.RECENT :], values]
        found = {finding.name: finding for finding in health.findings(self._lines)}
        for name in found.keys() - self._said:
            log.warning("step %d: %s", values["step"], found[name])
        self._said = set(found)

    def close(self) -> None:
        """Nothing is open."""


class ProgressBar:
    """One bar on the terminal."""

    def __init__(self, name: str, total_steps: int, left: TimeLeft | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._left = left or TimeLeft(total_steps)

        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(name, total=total_steps, text="starting", left="")
        self._progress.start()

    def line(self, values: dict[str, Any]) -> None:
        """Show one metric line."""
        if "split" in values:
            self._progress.console.print(describe(values), highlight=False)
        else:
            self._progress.update(
                self._task,
                completed=values["step"],
                text=describe(values),
                left=self._left.after(values),
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


def saved_checkpoints(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return what stands in a run's checkpoints, by name: step, samples, bytes."""
    found = {}
    for manifest in sorted(run_dir.glob("checkpoints/step_*/manifest.json")):
        facts = json.loads(manifest.read_text(encoding="utf-8"))
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
            run_id = json.loads(id_file.read_text(encoding="utf-8"))["id"]
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
        prefix = values.get("split", "train")
        flat = {f"{prefix}/{key}": value for key, value in values.items()
                if isinstance(value, (int, float))}  # fmt: skip
        for group, triple in values.get("trust_ratio", {}).items():
            flat.update(zip((f"trust_ratio/{group}_{s}" for s in ("min", "median", "max")), triple))
        try:
            self._run.log(flat, step=values["step"])
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
        self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def line(self, values: dict[str, Any]) -> None:
        """Write one metric line."""
        prefix = values.get("split", "train")
        for key, value in values.items():
            if isinstance(value, (int, float)) and key != "step":
                self._writer.add_scalar(f"{prefix}/{key}", value, values["step"])

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()
