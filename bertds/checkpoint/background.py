"""A checkpoint that is written while training continues.

The main thread copies the state; training waits only for this. A thread on each rank then writes
the rank's file and, last, a small ``rank_R.part.json`` next to it. Rank 0's thread waits for all of
these and publishes the checkpoint. Nothing here is collective: the ranks communicate through the
folder. Errors are kept, and raised by the next save on all ranks together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bertds.checkpoint.format import FileRecord, write_pieces
from bertds.engine.state_pieces import Piece
from bertds.errors import BertdsError
from bertds.system.atomic_files import explain_os_error, write_json
from bertds.system.json_fields import parse_json


def _part(rank: int) -> str:
    return f"rank_{rank:05d}.part.json"


class BackgroundSave:
    """A save in progress; it starts at once.

    Args:
        folder: the temporary checkpoint folder; exists.
        rank: this rank.
        world_size: number of ranks that write.
        pieces: this rank's live pieces; copied before the constructor returns.
        publish: makes the checkpoint visible; called with every rank's (file record, piece
            records).
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        pieces: list[Piece],
        publish: Callable[[list[Any]], None],
    ) -> None:
        self.folder = folder
        self._rank = rank
        self._world_size = world_size
        self._pieces = [
            piece._replace(tensor=piece.tensor.detach().to("cpu", copy=True)) for piece in pieces
        ]
        self._publish = publish
        self._problem: OSError | BertdsError | None = None
        self._written = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._work, name="bertds-save", daemon=True)
        self._thread.start()

    def wait_written(self) -> None:
        """Wait until this rank's file is on the disk.

        Raises:
            OSError, BertdsError: the file could not be written.
        """
        self._written.wait()
        if self._problem is not None:
            raise self._problem

    def wait_published(self) -> None:
        """Wait until the checkpoint is visible. Call it after all ranks' files are written.

        Raises:
            OSError, BertdsError: the checkpoint could not be written or published.
        """
        self._thread.join()
        if self._problem is not None:
            raise self._problem

    def abandon(self, patience_seconds: float = 0.0) -> None:
        """Stop waiting for other ranks' files after ``patience_seconds``; nothing is published."""
        self._thread.join(patience_seconds)
        self._abandoned.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            record, pieces = write_pieces(self.folder, self._rank, self._pieces)
            # Frees the copy of the state.
            self._pieces = []
            write_json(self.folder / _part(self._rank), {"file": asdict(record), "pieces": pieces})
            self._written.set()
            if self._rank == 0:
                parts = self._gather()
                if parts is not None:
                    self._publish(parts)
        except OSError as error:
            self._problem = explain_os_error(error, Path(error.filename or self.folder))
        except BertdsError as error:
            self._problem = error
        except Exception as error:
            self._problem = BertdsError(f"{self.folder}: {type(error).__name__}: {error}")
        finally:
            self._written.set()  # after a failure too, so that the main thread does not hang

    def _gather(self) -> list[Any] | None:
        """Return every rank's part once all are written; None if the save is abandoned."""
        files = [self.folder / _part(rank) for rank in range(self._world_size)]
        while not all(file.is_file() for file in files):
            if self._abandoned.wait(0.05):
                return None
        parts = []
        for file in files:
            part = parse_json(file.read_text(encoding="utf-8"))
            parts.append((FileRecord(**part["file"]), part["pieces"]))
            # The part files are no part of a checkpoint.
            file.unlink()
        return parts
