"""How a rank leaves a run: in order with the others, or at once and saying why."""

from __future__ import annotations

from types import TracebackType

from bertds.checkpoint.save import Checkpoints
from bertds.distributed.heartbeat import Heartbeat
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.process_group import end_processes
from bertds.errors import EXIT_FAILED, BertdsError, StoppedError
from bertds.system.fault_points import reached


class Leaving:
    """A context that ends this rank's part, with whatever of it exists by then.

    The builder fills in the parts as it makes them, so that an error half way through building
    closes exactly what is open.
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
        """Leave; an error that a lost peer caused becomes one that names the peer.

        Raises:
            BertdsError: a peer was lost, or this rank was to end with exit code 0 (a library that
                calls ``sys.exit()``): one that leaves before the others never reports success.
        """
        del kind, traceback
        lost: BertdsError | None = None
        if error is not None and self.heartbeat is not None:
            self.heartbeat.begin_to_leave()
        if isinstance(error, SystemExit) and error.code in (None, 0):
            early = "this process called sys.exit() before the run was finished"
            self.leave(early, orderly=False)
            raise BertdsError(f"{early}; run the same command again to resume") from error
        if error is not None and self.heartbeat is not None and not isinstance(error, BertdsError):
            lost = self.heartbeat.explain(error)
        reason = lost or error
        code = reason.exit_code if isinstance(reason, StoppedError) else EXIT_FAILED
        self.leave(" ".join(str(reason or "").split()), orderly=error is None, code=code)
        if lost is not None:
            raise lost from error

    def stop_early(self, reason: str, code: int) -> None:
        """Have the other ranks end with the same code, before a stop signal ends this one."""
        if self.heartbeat is not None:
            self.heartbeat.stop(reason, code)

    def leave(self, failure: str, *, orderly: bool, code: int = EXIT_FAILED) -> None:
        """End saving, heartbeat and engine.

        Args:
            failure: the message to the other ranks if this one leaves out of order.
            orderly: whether all ranks leave together.
            code: the exit code of the other ranks if this one leaves out of order.
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
        elif self.heartbeat is not None:
            end_processes(wait=False)
