"""How a rank leaves a run: together with the others, or at once with a reason."""

from __future__ import annotations

from types import TracebackType

from bertds.checkpoint.save import Checkpoints
from bertds.distributed.heartbeat import Heartbeat
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.process_group import end_processes
from bertds.errors import EXIT_FAILED, BertdsError, StoppedError
from bertds.system.fault_points import reached


class Leaving:
    """A context that closes this rank's part of the run.

    The builder sets each attribute as it creates the part, so that an error in the middle of
    building closes exactly what is open.
    """

    def __init__(self) -> None:
        self.heartbeat: Heartbeat | None = None
        self.engine: Engine | None = None
        self.checkpoints: Checkpoints | None = None

    def __enter__(self) -> Leaving:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave; an error that a lost peer caused is replaced by one that names the peer.

        Raises:
            BertdsError: a peer was lost. Or this rank was about to exit with code 0, because a
                library called ``sys.exit()``: a rank that leaves early must not report success.
        """
        del kind, traceback
        lost: BertdsError | None = None
        # From here on this rank's silence is no reason for the others to kill it.
        if error is not None and self.heartbeat is not None:
            self.heartbeat.begin_to_leave()
        if isinstance(error, SystemExit) and error.code in (None, 0):
            early = "this process called sys.exit() before the run was finished"
            self.leave(early, orderly=False)
            raise BertdsError(f"{early}; run the same command again to resume") from error
        # A lost connection raises an arbitrary torch error; the heartbeat knows which peer is
        # missing.
        if error is not None and self.heartbeat is not None and not isinstance(error, BertdsError):
            lost = self.heartbeat.explain(error)
        # The message and the exit code that the other ranks are to use.
        reason = lost or error
        code = reason.exit_code if isinstance(reason, StoppedError) else EXIT_FAILED
        self.leave(" ".join(str(reason or "").split()), orderly=error is None, code=code)
        if lost is not None:
            raise lost from error

    def stop_early(self, reason: str, code: int) -> None:
        """Make the other ranks exit with the same code, before a stop signal ends this one."""
        if self.heartbeat is not None:
            self.heartbeat.stop(reason, code)

    def leave(self, failure: str, *, orderly: bool, code: int = EXIT_FAILED) -> None:
        """Close checkpoints, heartbeat and engine, in this order.

        Args:
            orderly: whether all ranks leave together.
            failure: the message to the other ranks if they do not.
            code: the exit code of the other ranks if they do not.
        """
        reached("run.leave")
        if self.checkpoints is not None:
            self.checkpoints.abandon()
        if orderly and self.engine is not None:
            # No rank's heartbeat may stop while another rank still watches it.
            self.engine.gather_objects(None)
        if self.heartbeat is not None:
            self.heartbeat.stop("" if orderly else failure or "an error", code)
        if self.engine is not None:
            self.engine.close(orderly=orderly)
        # The process group exists although the engine was not created.
        elif self.heartbeat is not None:
            end_processes(wait=False)
