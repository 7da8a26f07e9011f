"""The run folder: who may write to it, what stands in it, and whether it fits this command.

```text
RUN/
  config.yaml        the recipe, resolved      deepspeed.json   the DeepSpeed JSON, resolved
  environment.json   versions and commands     tokenizer/       vocab.txt and its settings
  metrics.jsonl      one JSON object a line    log.txt          what was said
  checkpoints/       step_00000100/ ... latest
  DONE               written when the last step is done and saved
```
"""

from __future__ import annotations

import logging
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from bertds import __version__
from bertds.config.load import REMOVED_KEYS, flatten, read_yaml, to_dict
from bertds.config.recipe import Config
from bertds.distributed.rank_info import find_place
from bertds.errors import ConfigError
from bertds.monitor.run_files import read_object, starts_of
from bertds.system.atomic_files import explain_os_error, write_json, write_text
from bertds.system.folder_lock import FolderLock
from bertds.system.inside import refuse_links
from bertds.system.logs import log, log_to_file

# Settings that a continued run must share with its beginning: they decide which samples come in
# which order, or what the model is.
FIXED_SECTIONS = ("model",)
FIXED_KEYS = (
    "run.seed",
    "data.sequence_length",
    "data.max_predictions_per_sequence",
    "data.masked_lm_prob",
    "data.short_seq_prob",
    "data.whole_word_masking",
    "data.ngram",
    "data.pairs",
    "data.masked_lm_prob_end",
    "data.masked_lm_prob_steps",
)
FREE_KEYS = ("model.activation_checkpointing", "model.attention_kernel")
# What a run writes into its folder under names of its own; patterns, links among them are refused.
WRITTEN = (
    ".lock",
    "config.yaml",
    "deepspeed.json",
    "environment.json",
    "metrics.jsonl",
    "log.txt",
    "DONE",
    "samples_rank_*.jsonl",
    "wandb_id.json",
    "wandb",
    "tensorboard",
    "tokenizer",
    "tokenizer/*",
    "checkpoints",
    "checkpoints/*",
    "slurm",
    "slurm/*",
)


class RunFolder:
    """One run's folder, opened by every rank and written by the main one.

    Args:
        config: the recipe; ``run.dir`` names the folder.
        is_main: whether this is rank 0.

    Raises:
        ConfigError: ``run.dir`` is empty, or the folder belongs to a run with other settings.
        InUseError: another process trains in it.
    """

    def __init__(self, config: Config, is_main: bool) -> None:
        if not config.run.dir:
            raise ConfigError("run.dir is not set; give the run folder with --set run.dir=PATH")
        self.path = Path(config.run.dir)
        self.config = config
        self.is_main = is_main
        self._log_file: logging.Handler | None = None
        self.lock = FolderLock(self.path, f"a training run in {self.path}")

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints stand."""
        return self.path / "checkpoints"

    @property
    def done(self) -> bool:
        """Whether the run has reached its last step."""
        return (self.path / "DONE").is_file()

    def open(self) -> RunFolder:
        """Create the folder, take its lock and check that it fits (main process only)."""
        if self.is_main:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise explain_os_error(error, self.path) from error
            refuse_links(self.path, WRITTEN, ConfigError)
            self.lock.acquire()
            try:
                self._check_same_run()
            except BaseException:
                self.lock.release()
                raise
            self._log_file = log_to_file(self.path / "log.txt")
        return self

    def _check_same_run(self) -> None:
        file = self.path / "config.yaml"
        if not file.is_file():
            return
        before = flatten(read_yaml(file))
        now = flatten(to_dict(self.config))
        for key, (neutral, remedy) in REMOVED_KEYS.items():
            if before.get(key, neutral) != neutral:
                raise ConfigError(
                    f"{self.path}: this run began with {key}={before[key]}, which is no longer a "
                    f"key; {remedy}; choose another run.dir, with init.from={self.path}"
                )
        for key, value in now.items():
            fixed = key in FIXED_KEYS or key.split(".")[0] in FIXED_SECTIONS
            if fixed and key not in FREE_KEYS and key in before and before[key] != value:
                raise ConfigError(
                    f"{self.path}: this run began with {key}={before[key]}, now {key}={value}; "
                    "set it back, or choose another run.dir"
                )

    def record(
        self, deepspeed_json: dict[str, Any], tokenizer_files: dict[str, Path], device: str
    ) -> None:
        """Save the resolved settings, the versions and the tokenizer (main process only).

        Args:
            deepspeed_json: the settings as they are used.
            tokenizer_files: where each file of the tokenizer is.
            device: ``cpu``, or the name of the GPU that trains.
        """
        if not self.is_main:
            return
        text = yaml.safe_dump(to_dict(self.config), sort_keys=False, allow_unicode=True)
        write_text(self.path / "config.yaml", text)
        write_json(self.path / "deepspeed.json", deepspeed_json)
        file = self.path / "environment.json"
        starts = starts_of(read_object(file, []))  # one that a crash tore begins anew
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        ranks = find_place().world_size
        starts.append(
            {"time": now, "command": command_line(), "world_size": ranks, "device": device}
        )
        write_json(file, {**environment(), "starts": starts})
        folder = self.path / "tokenizer"
        folder.mkdir(exist_ok=True)
        for name, source in tokenizer_files.items():
            if source.is_file() and source.resolve() != (folder / name).resolve():
                shutil.copyfile(source, folder / name)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write ``DONE`` (main process only)."""
        if self.is_main:
            write_json(self.path / "DONE", summary)
            log.info("done: %s", self.path)

    def close(self) -> None:
        """Close the log file and give the lock back."""
        if self._log_file is not None:
            log.removeHandler(self._log_file)
            self._log_file.close()
            self._log_file = None
        self.lock.release()


def environment() -> dict[str, Any]:
    """Return the versions that a run depends on, and the commit of the code if known."""
    packages = {}
    for name in ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "h5py", "numba"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "missing"
    return {
        "bertds": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": packages,
    }


def _commit() -> str:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def command_line() -> str:
    """Return the command that started this process, for the run's record."""
    return " ".join([Path(sys.executable).name, *sys.argv])
