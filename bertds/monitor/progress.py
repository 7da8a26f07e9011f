"""Shows a run's progress: a live display on a terminal, plain lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bertds.display.words import in_words
from bertds.monitor.remaining_time import LaterPhase, seconds_of, speed, steps_by_clock
from bertds.system.logs import log

if TYPE_CHECKING:
    from rich.console import Console, Group


def describe(values: dict[str, Any]) -> str:
    """Return a metric line as text."""
    return "  ".join(facts(values))


def facts(values: dict[str, Any], stalls_from: float = 0.01) -> list[str]:
    """Return the parts of a metric line as text; loader stalls only above a share of the time."""
    # Validation lines have a baseline; train lines have rates and resources below.
    if "split" in values:
        parts = [f"{values['split']} at step {values['step']}: mlm loss {values['mlm_loss']:.4f}"]
        if values.get("unigram_entropy") is not None:
            parts[0] += f" (baseline from word frequencies alone: {values['unigram_entropy']:.4f})"
    elif values["loss"] is None:
        return ["no finite loss"]
    else:
        parts = [f"loss {values['loss']:.4f}", f"mlm {values['mlm_loss']:.4f}"]
    parts.append(f"mlm accuracy {values['mlm_accuracy']:.1%}")
    if values.get("nsp_accuracy") is not None:
        guess = values.get("nsp_majority")
        baseline = "" if guess is None else f" (majority label {guess:.1%})"
        parts.append(f"nsp accuracy {values['nsp_accuracy']:.1%}{baseline}")
    if "lr" in values:
        parts.append(f"lr {values['lr']:.3g}")
        if values.get("grad_norm") is not None:
            parts.append(f"grad norm {values['grad_norm']:.3g}")
        parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
        if values.get("mfu") is not None:
            parts.append(f"MFU {values['mfu']:.1%}")
        if values.get("memory_gib") is not None:
            parts.append(f"memory {values['memory_gib']:.2f} GiB")
        stalled = values["stall_seconds"] / max(values["seconds"], 1e-9)
        if stalled > stalls_from:
            parts.append(f"waiting for data {stalled:.0%}")
    return parts


class TimeLeft:
    """Estimates how long a run will still take, from its speed since it was started.

    Args:
        total_steps: of this phase.
        later: the phases that follow.
        devices: number of processes that share the work.
        clock_hours: hours of training after which the phase ends at the latest.
        seconds: duration of the steps before this start.

    Attributes:
        total_steps: of this phase, or about the steps until its clock ends it.
    """

    def __init__(
        self,
        total_steps: int,
        later: Sequence[LaterPhase] = (),
        devices: int = 1,
        *,
        clock_hours: float | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.total_steps = self._most_steps = total_steps
        self._clock_hours = clock_hours
        self._seconds = seconds
        self._last = 0.0
        self.later = list(later)
        self.devices = devices
        self._begin: tuple[float, int] | None = None
        self._speed = 0.0

    def after(self, values: dict[str, Any]) -> str:
        """Return the time left after a train line as text; "" if it is not known yet."""
        now, step = time.monotonic(), values["step"]
        # The recipe's clock also counts validations and saves between two lines.
        since = now - self._last if self._begin else 0.0
        self._seconds += max(values.get("seconds", 0.0), since)
        self._last = now
        begin, first = self._begin = self._begin or (now, step)
        self.total_steps = steps_by_clock(self._most_steps, self._clock_hours, step, self._seconds)
        new = speed(values, self.devices)
        # A window of a few steps can be slow or fast by chance: smooth it, or the end would jump.
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

    def __init__(self, left: TimeLeft, least_seconds: float = 5.0) -> None:
        self.least_seconds = least_seconds
        self._left = left
        self._last = 0.0

    def line(self, values: dict[str, Any]) -> None:
        """Show one metric line."""
        if "split" in values:
            log.info("%s", describe(values))
            return
        now, step, left = time.monotonic(), values["step"], self._left.after(values)
        if now - self._last >= self.least_seconds or step == self._left.total_steps:
            self._last = now
            tail = f"  {left}" if left else ""
            log.info("step %d/%d  %s%s", step, self._left.total_steps, describe(values), tail)

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


class ProgressBar:
    """A few lines at the bottom of a terminal, wrapped to its width; the log is above them.

    ::

        phase1 ━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━ 420/1000 steps
        loss 4.6809   mlm 3.9932   mlm accuracy 9.8%   nsp accuracy 56.2%   lr 0.00161
        grad norm 1.1   21,402 tokens/s   memory 0.72 GiB   waiting for data 0%
        2 min left, 6 min with the next phase
    """

    def __init__(
        self, name: str, left: TimeLeft, console: Console | None = None, *, step: int = 0
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self.name = name
        self._left = left
        self._step = step
        self._facts = ["resuming" if step else "starting"]
        self._console = console or Console(stderr=True)
        self._live = Live(
            console=self._console,
            get_renderable=self._picture,
            refresh_per_second=2,
        )
        self._live.start()

    def line(self, values: dict[str, Any]) -> None:
        """Show one metric line; a validation line stays in the log."""
        if "split" in values:
            log.info("%s", describe(values))
            return
        self._step = values["step"]
        left = self._left.after(values)
        self._facts = [*facts(values, -1.0), *([left] if left else [])]

    def close(self) -> None:
        """Stop the display; its last lines remain on the terminal."""
        self._live.stop()

    def _picture(self) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar as Bar
        from rich.table import Table
        from rich.text import Text

        width, total = self._console.width, self._left.total_steps
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(self.name, style="bold", no_wrap=True, overflow="ellipsis"),
            Bar(total=total, completed=self._step, width=max(8, min(40, width // 3))),
            Text(f"{self._step}/{total} steps", no_wrap=True),
        )
        return Group(head, Text("\n".join(packed(self._facts, width))))


def packed(parts: Sequence[str], width: int) -> list[str]:
    """Return parts in lines of at most ``width`` characters, without dividing a part."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f"   {part}"
        else:
            lines.append(part)
    return lines
