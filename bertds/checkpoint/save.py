"""Saves checkpoints: each is complete or invisible, and a rule decides which are kept.

All ranks write into ``checkpoints/.tmp-step_N``, each to its own file. Rank 0 then writes the
manifest with the checksum of every file, and publishes the folder with one rename.
``checkpoints/latest`` names the newest published one. A resumed run uses the newest intact
checkpoint, and warns about each damaged one that it skips.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from bertds.checkpoint.background import BackgroundSave
from bertds.checkpoint.copies import Copies
from bertds.checkpoint.find import step_folders, step_name, step_of
from bertds.checkpoint.format import write_manifest, write_pieces
from bertds.checkpoint.train_state import TrainState
from bertds.config.run_settings import CheckpointConfig
from bertds.display.words import size
from bertds.engine.interface import SavableEngine
from bertds.engine.state_pieces import Piece
from bertds.errors import BertdsError
from bertds.system.atomic_files import explain_os_error, free_bytes, write_text
from bertds.system.fault_points import reached
from bertds.system.logs import log

T = TypeVar("T")


class Checkpoints:
    """Saves and finds the checkpoints of one run. Saving is collective: all ranks call it.

    Args:
        run_dir: the run folder.
        config: when to save, and what to keep.
        engine: its weights and moments are saved.
        shapes: the full shape of every parameter (under ZeRO-3 the module no longer has it).
        facts: further contents of the manifest: model, tokenizer, recipe, data, versions.
    """

    def __init__(
        self,
        run_dir: Path,
        config: CheckpointConfig,
        engine: SavableEngine,
        shapes: dict[str, tuple[int, ...]],
        facts: dict[str, Any],
    ) -> None:
        self.folder = Path(run_dir) / "checkpoints"
        self.config = config
        self.engine = engine
        self.shapes = shapes
        self.facts = facts
        self.is_main = engine.rank == 0
        self.saved_step: int | None = None
        self._start: int | None = None
        self._own: set[int] = set()
        """The steps that this start has saved."""
        self._background: BackgroundSave | None = None
        self._best_step: int | None = None
        self.copies: Copies | None = None
        if self.is_main and config.copy_to:
            self.copies = Copies(config.copy_to, self._superfluous)

    def continue_from(self, step: int) -> None:
        """Say where the run continues: newer checkpoints are damaged, since the start skipped them.

        They do not count for ``keep_last``, and are removed once a newer one is saved.
        """
        self._start = step

    def save(self, state: TrainState, *, wait: bool = True) -> None:
        """Save now, unless this step has been saved already. Collective.

        Args:
            state: the state of training.
            wait: False lets ``checkpoint.background`` copy the state and return; an error is then
                raised by the next save.

        Raises:
            BertdsError: on every rank, if any rank could not write, or a weight is not finite;
                the last good checkpoint is unaffected.
        """
        # Only one background save may run at a time.
        if self._background is not None and (wait or self.saved_step != state.step):
            self.finish()
        if self.saved_step == state.step:
            return
        # Files are written to a temporary folder, which is renamed when it is complete.
        name = step_name(state.step)
        final, temporary = self.folder / name, self.folder / f".tmp-{name}"
        pieces = self.engine.pieces()
        self._check(pieces)
        self._together(lambda: self._fresh(temporary) if self.is_main else None, temporary)
        # Collected on every rank, because the engine's methods are collective.
        manifest = {
            "step": state.step,
            "state": state.state_dict(),
            "optimizer_steps": self.engine.optimizer_steps(),
            "engine": self.engine.extra_state(),
            **self.facts,
            "shapes": {key: list(shape) for key, shape in self.shapes.items()},
        }
        self.saved_step = state.step
        kept = copy.copy(state)  # training changes the state while a background save writes
        # Write in the background from a copy of the state, while training continues.
        if self.config.background and not wait:
            self._background = BackgroundSave(
                temporary,
                self.engine.rank,
                len(self.engine.gather_objects(None)),
                pieces,
                lambda parts: self._publish(temporary, final, manifest, parts, kept),
            )
            return
        # Otherwise every rank writes its pieces, and the main process publishes them.
        written = self._together(
            lambda: write_pieces(temporary, self.engine.rank, pieces), temporary
        )
        parts = self.engine.gather_objects(written)
        self._together(
            lambda: (
                self._publish(temporary, final, manifest, parts, kept) if self.is_main else None
            ),
            temporary,
        )

    def finish(self) -> None:
        """Wait until a background save is published. Collective.

        Raises:
            BertdsError: on every rank, if any rank could not write.
        """
        background, self._background = self._background, None
        if background is None:
            return
        # Written on all ranks first: rank 0 publishes only when it has every rank's part.
        self._together(background.wait_written, background.folder, background.abandon)
        self._together(background.wait_published, background.folder)

    def wait_copied(self, seconds: float) -> None:
        """Wait until all saved checkpoints are uploaded to ``checkpoint.copy_to``. Not collective.

        Raises:
            StoreError: a checkpoint is not uploaded after ``seconds``.
        """
        if self.copies is not None:
            self.copies.wait(seconds)
            self._prune()  # a checkpoint could not be removed while it was being uploaded

    def abandon(self) -> None:
        """Give a background save 5 s to finish, then give it up. Not collective."""
        if self.copies is not None:
            self.copies.stop()
        if self._background is not None:
            self._background.abandon(patience_seconds=5.0)
            self._background = None

    def _fresh(self, temporary: Path) -> None:
        # Files of an earlier attempt at this step may be left over.
        self.folder.mkdir(exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        reached("checkpoint.begun")

    def _publish(
        self,
        temporary: Path,
        final: Path,
        manifest: dict[str, Any],
        parts: list[Any],
        state: TrainState,
    ) -> None:
        """Make a written checkpoint visible (main process only)."""
        files = [asdict(record) for record, _ in parts]
        pieces = [list(piece) for _, records in parts for piece in records]
        reached("checkpoint.manifest")
        # This flushes the folder too: all is on the disk before the rename makes it visible.
        write_manifest(temporary, {**manifest, "files": files, "pieces": pieces})
        if final.exists():  # a damaged checkpoint of this step, which the resume skipped
            self._remove(final)
        reached("checkpoint.publish")
        temporary.rename(final)
        reached("checkpoint.published")
        reached("checkpoint.latest")
        # This flushes the rename as well, before an older checkpoint is removed.
        write_text(self.folder / "latest", final.name + "\n")
        log.info("saved %s", final)
        self._own.add(state.step)
        self._best_step = state.best_step
        if self.copies is not None:
            # After `latest`, so that the newest checkpoint is never the one that is removed.
            self.copies.add(final)
        self._prune()

    def _together(
        self, work: Callable[[], T], temporary: Path, on_failure: Callable[[], None] | None = None
    ) -> T:
        """Do one rank's part of a save; if any rank fails, all raise and the files are removed."""
        problem = ""
        try:
            result = work()
        except OSError as error:
            problem = str(explain_os_error(error, Path(error.filename or temporary)))
        except BertdsError as error:
            problem = str(error)
        # Every rank learns whether any has failed: a checkpoint with a missing part is useless.
        problems = [text for text in self.engine.gather_objects(problem) if text]
        if problems:
            self.saved_step = None
            if on_failure is not None:
                on_failure()
            if self.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise BertdsError(f"checkpoint not saved: {problems[0]}")
        return result

    def _check(self, pieces: list[Piece]) -> None:
        """Refuse to save if the disk is too full or a value is not finite."""
        anchor = self.folder if self.folder.is_dir() else self.folder.parent
        # One exchange: bytes to write (float32), free bytes, and the first tensor that is not
        # finite.
        facts = self.engine.gather_objects(
            (
                sum(4 * piece.tensor.numel() for piece in pieces),
                free_bytes(anchor),
                _not_finite(pieces),
            )
        )
        broken = [name for _, _, name in facts if name]
        if broken:
            raise BertdsError(
                f"checkpoint not saved: {broken[0]} contains a value that is not finite. The last "
                "checkpoint is unaffected. Lower the learning rate and run the same command again"
            )
        total, room = sum(fact[0] for fact in facts), min(fact[1] for fact in facts)
        # 2% and 1 MiB more for headers and the manifest.
        needed = total * 1.02 + 2**20
        if room < needed:
            raise BertdsError(
                f"checkpoint not saved: {self.folder} has {size(room)} free, but the "
                f"checkpoint needs {size(needed)}; free some space and run the same "
                "command again"
            )

    def _prune(self) -> None:
        """Remove checkpoints that no rule keeps."""
        folders = {step_of(folder.name): folder for folder in step_folders(self.folder)}
        for step in self._superfluous(list(folders)):
            if self.copies is None or self.copies.release(folders[step]):
                self._remove(folders[step])

    def _superfluous(self, steps: list[int]) -> list[int]:
        """Return those of ``steps`` (newest first) that no rule keeps."""
        config = self.config
        if config.keep_last == 0:
            return []
        damaged = {step for step in steps if self._was_skipped(step)}
        good = [step for step in steps if step not in damaged]
        replaced = [step for step in damaged if good and step < good[0]]
        return replaced + [
            step
            for step in good[config.keep_last :]
            if not (config.milestone_steps and step % config.milestone_steps == 0)
            and not (config.keep_best and step == self._best_step)
        ]

    def _was_skipped(self, step: int) -> bool:
        return self._start is not None and step > self._start and step not in self._own

    @staticmethod
    def _remove(folder: Path) -> None:
        # Renamed first: a partly removed folder must not look like a checkpoint.
        stale = folder.with_name(f".tmp-removed-{folder.name}")
        shutil.rmtree(stale, ignore_errors=True)
        reached("checkpoint.remove")
        folder.rename(stale)
        shutil.rmtree(stale, ignore_errors=True)


def _not_finite(pieces: list[Piece]) -> str:
    """Return kind and name of a weight or moment with a NaN or an infinity; "" if there is none."""
    whole = [piece for piece in pieces if piece.tensor.numel()]
    if not whole:
        return ""
    # One result per tensor, read together: a GPU is waited for once.
    good = torch.stack([piece.tensor.isfinite().all() for piece in whole]).tolist()
    return next((f"{p.kind} {p.name}" for p, fine in zip(whole, good) if not fine), "")
