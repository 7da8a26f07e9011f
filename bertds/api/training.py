"""``bertds.train``: one phase of pre-training, in this process."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertds.errors import EXIT_OK, BertdsError
from bertds.monitor.metrics_file import FILE
from bertds.monitor.run_files import read_metrics
from bertds.system.early_stop import STOP_SIGNALS
from bertds.system.start_up import paused_collector


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The outcome of a call of :func:`train`."""

    run_dir: Path
    """The run folder, for ``bertds.from_pretrained`` and ``bertds.evaluate``."""
    finished: bool
    """Whether the last step is complete; if not, the same call continues the run."""
    metrics: list[dict[str, Any]]
    """The lines of ``metrics.jsonl``, of training and validation, in the order of their steps."""

    @property
    def step(self) -> int:
        """The step of the last line, or 0."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0


def train(
    recipe: str | Path | None = None,
    *,
    run_dir: str | Path = "",
    data: str | Path = "",
    deepspeed_config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Pre-train for one phase in this process, as ``bertds train`` does.

    The same call continues a run that was stopped. If a notebook's cell is interrupted, the run
    stops after the current step and saves everything.

    Args:
        recipe: a recipe by name or path; None = the defaults.
        run_dir: the run folder; "" = ``run.dir`` of the recipe.
        data: the training data; "" = ``data.path`` of the recipe.
        deepspeed_config: a DeepSpeed JSON by name or path; None = the one that the recipe names.
        settings: further keys, as for ``--set``: ``{"schedule.total_steps": 100,
            "deepspeed.optimizer.params.lr": 1e-3}``.

    Returns:
        The run folder, whether the run is finished, and its metrics.

    Raises:
        BertdsError: an error with which the command would end.
    """
    from bertds import train as module
    from bertds.training.settings import read_settings

    values = dict(settings or {})
    for key, value in (("run.dir", run_dir), ("data.path", data)):
        if value:
            values[key] = str(value)
    # The function calls the command with its arguments, so that both behave alike.
    assignments = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    named = None if recipe is None else str(recipe)
    json_named = None if deepspeed_config is None else str(deepspeed_config)
    folder = Path(read_settings(named, json_named, assignments)[0].run.dir)
    words = ["--config", named] if named else []
    words += ["--deepspeed_config", json_named] if json_named else []
    words += ["--set", *assignments] if assignments else []
    if threading.current_thread() is not threading.main_thread():
        raise BertdsError("bertds.train handles signals, so it must be called from the main thread")
    # The command never releases what exists after this import; here, that includes the caller's.
    module.import_build(paused_collector())
    with _own_signals():
        code = module.main(words)
    return TrainingResult(folder, code == EXIT_OK, read_metrics(folder / FILE).lines)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Restore the signal handlers: a run leaves them disabled, which a notebook cannot use."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
