"""The run folder: which process may write to it, what is in it, and whether it fits this command.

```text
RUN/
  config.yaml        the recipe, resolved      deepspeed.json   the DeepSpeed JSON, resolved
  environment.json   versions and commands     tokenizer/       vocab.txt and its settings
  metrics.jsonl      one JSON object per line  log.txt          the log
  settings.jsonl     what each start changed
  checkpoints/       step_00000100/ ... latest
  DONE               written when the last step is done and saved
```
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from bertds import __version__
from bertds.checkpoint.find import step_name
from bertds.config.load import to_dict
from bertds.config.recipe import Config
from bertds.data.tokenizer_folder import tokenizer_files, write_tokenizer
from bertds.data.vocabulary import TokenizerInfo
from bertds.distributed.rank_info import find_rank_info
from bertds.errors import ConfigError
from bertds.monitor.run_files import read_object, starts_of
from bertds.monitor.setting_lines import FILE as SETTINGS_FILE
from bertds.monitor.setting_lines import Change, as_line
from bertds.system.atomic_files import (
    append_line,
    atomic_path,
    explain_os_error,
    write_json,
    write_text,
)
from bertds.system.folder_lock import FolderLock
from bertds.system.inside import refuse_links
from bertds.system.logs import log, log_to_file
from bertds.system.secrets import masked, without_secrets
from bertds.training.foreign_files import RECORD, refuse_foreign_files
from bertds.training.launch import COMMAND, LOST
from bertds.training.setting_changes import changes, changes_of_checkpoint, is_done

# All names that a run writes in its folder, as patterns. Links under these names are refused.
WRITTEN = (
    ".lock",
    "config.yaml",
    "deepspeed.json",
    "environment.json",
    "metrics.jsonl",
    "settings.jsonl",
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
        deepspeed: the DeepSpeed JSON, as nested values.

    Raises:
        ConfigError: ``run.dir`` is not set, or the folder contains other files or a run with other
            settings.
        InUseError: another process trains in it.
    """

    def __init__(
        self, config: Config, is_main: bool, deepspeed: Mapping[str, Any] | None = None
    ) -> None:
        if not config.run.dir:
            raise ConfigError("run.dir is not set; give the run folder with --set run.dir=PATH")
        self.path = Path(config.run.dir)
        self.config = config
        self.is_main = is_main
        self.deepspeed = deepspeed or {}
        self._changed: list[Change] = []
        self._log_file: logging.Handler | None = None
        self.lock = FolderLock(self.path, f"a training run in {self.path}")

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def done(self) -> bool:
        """Whether nothing is left to train; see :func:`setting_changes.is_done`."""
        return is_done(self.path, self.config, self.deepspeed)

    def open(self) -> RunFolder:
        """Create the folder, take its lock and check that it fits (main process only)."""
        if self.is_main:
            # A link could make the run write outside its folder.
            refuse_links(self.path, WRITTEN, ConfigError)
            refuse_foreign_files(self.path)
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise explain_os_error(error, self.path) from error
            # Found here rather than by the first save, which comes after hours of training.
            for name in ("checkpoints", "tokenizer"):
                if (self.path / name).exists() and not (self.path / name).is_dir():
                    raise ConfigError(
                        f"{self.path / name}: a run needs a folder of this name, but this is a "
                        "file; remove it"
                    )
            self.lock.acquire()
            try:
                self._changed = changes(self.path, self.config, self.deepspeed)
            except BaseException:
                self.lock.release()
                raise
            self._log_file = log_to_file(self.path / "log.txt")
        return self

    def check_copy(self, url: str, manifest: Mapping[str, Any]) -> None:
        """Check that a copied checkpoint was trained with the fixed settings of this start.

        Args:
            url: of the checkpoint.
            manifest: that of the checkpoint.

        Raises:
            ConfigError: a fixed setting differs; the message names it with both values.
        """
        changed = changes_of_checkpoint(
            url, "checkpoint.copy_to", manifest, self.config, self.deepspeed
        )
        # Without a config.yaml here, the copy is the only record of the previous start.
        if not (self.path / "config.yaml").is_file():
            self._changed = changed

    def check_resumed(self, manifest: Mapping[str, Any]) -> None:
        """Check the settings that the run's own checkpoint was trained with.

        They are those of ``config.yaml``, which :meth:`open` checks, unless that was removed.

        Args:
            manifest: that of the checkpoint.

        Raises:
            ConfigError: a fixed setting differs; the message names it with both values.
        """
        if not (self.path / "config.yaml").is_file():
            self._changed = changes_of_checkpoint(
                str(self.path), "run.dir", manifest, self.config, self.deepspeed
            )

    def record(
        self,
        deepspeed_json: dict[str, Any],
        tokenizer: TokenizerInfo,
        device: str,
        step: int = 0,
    ) -> None:
        """Save the resolved settings, the versions and the tokenizer (main process only).

        Also logs what this start changes, and removes ``DONE`` if a finished run continues.

        Args:
            deepspeed_json: the settings as they are used.
            tokenizer: the tokenizer of the data.
            device: ``cpu``, or the name of the GPU that trains.
            step: where training resumes.
        """
        if not self.is_main:
            return
        for change in self._changed:
            log.info("%s %s -> %s from step %d", change.name, change.before, change.now, step)
        # Read before config.yaml is replaced: its modification time is that of the previous start.
        lost = self._lost(step)
        # First the file by which the folder is known as a run, if this start is killed.
        file = self.path / RECORD
        starts = starts_of(read_object(file, []))  # a torn file starts a new list
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        ranks = find_rank_info().world_size
        start = {"time": now, "command": command_line(), "world_size": ranks, "device": device}
        starts.append({**start, "lost": lost} if lost else start)
        write_json(file, {**environment(), "starts": starts})
        recipe = without_secrets(to_dict(self.config))
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        write_text(self.path / "config.yaml", text)
        write_json(self.path / "deepspeed.json", deepspeed_json)
        append_line(self.path / SETTINGS_FILE, as_line(step, ranks, now, self._changed))
        (self.path / "DONE").unlink(missing_ok=True)
        self._write_tokenizer(tokenizer)

    def _write_tokenizer(self, tokenizer: TokenizerInfo) -> None:
        """Copy the tokenizer, so that the run does not depend on the data folder.

        The copy states the rules that text is treated with, even if ``data.lower_case`` replaces
        those of the files.
        """
        folder = self.path / "tokenizer"
        folder.mkdir(exist_ok=True)
        if not tokenizer.files:
            return
        # Written elsewhere first, because the data may be tokenized with the files of this folder.
        with tempfile.TemporaryDirectory(prefix="bertds-") as scratch:
            length = self.config.model.max_position_embeddings
            write_tokenizer(Path(scratch), tokenizer.files, length, tokenizer.rules)
            written = tokenizer_files(Path(scratch))
            for name, source in written.items():
                with atomic_path(folder / name) as temporary:
                    shutil.copyfile(source, temporary)
        # A file of another tokenizer, from a start before the first checkpoint.
        for name, file in tokenizer_files(folder).items():
            if name not in written:
                file.unlink()

    def _lost(self, step: int) -> dict[str, Any]:
        """Return what ended the previous attempt and the time that it cost; {} if none was lost.

        The time is counted from the checkpoint that this start resumes from or, without one, from
        the previous start: what was trained since then is trained again.
        """
        what = os.environ.get(LOST, "")
        if not what:
            return {}
        since = [self.checkpoints / step_name(step) / "manifest.json", self.path / "config.yaml"]
        times = [path.stat().st_mtime for path in since if path.is_file()]
        now = time.time()
        return {"what": what, "seconds": round(max(0.0, now - max(times, default=now)), 1)}

    def finish(self, summary: dict[str, Any]) -> None:
        """Write ``DONE`` (main process only)."""
        if self.is_main:
            write_json(self.path / "DONE", summary)
            log.info("done: %s", self.path)

    def close(self) -> None:
        """Close the log file and release the lock."""
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
        # Describes the clone that the code runs from; an installed package has no commit.
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
    return masked(os.environ.get(COMMAND) or shlex.join([Path(sys.executable).name, *sys.argv]))
