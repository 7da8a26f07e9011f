"""A process that has imported everything and forks ranks of training runs: starts cost nothing.

Importing torch and DeepSpeed takes seconds and a tiny run takes one, so tests that need many
processes ask this server for them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.support.ranks import REPOSITORY, free_ports, rank_environment

LATE_IMPORTS = (
    "torch._dynamo.backends.debugging",
    "torch._inductor.compile_fx",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.comm.mori",
)
"""What the first optimizer and the first engine import; otherwise, each rank would, for seconds.

With versions of the packages that lack one of these, ranks only start more slowly.
"""


class Ranks:
    """The processes of one training run."""

    def __init__(self, server: ForkServer, pids: list[int], outputs: list[Path]) -> None:
        self.server = server
        self.pids = pids
        self.outputs = outputs
        self.codes: list[int | None] = [None] * len(pids)

    def poll(self) -> list[int | None]:
        """Return the exit codes so far; -n for a death by signal n."""
        for index, pid in enumerate(self.pids):
            if self.codes[index] is None:
                self.codes[index] = self.server.ask({"poll": pid})
        return self.codes

    def wait(self, timeout: float = 120.0) -> list[int]:
        """Return all exit codes; past the timeout the ranks are killed and the test fails."""
        end = time.monotonic() + timeout
        while None in self.poll():
            if time.monotonic() > end:
                texts = [self.text(rank)[-2000:] for rank in range(len(self.pids))]
                self.kill()
                raise AssertionError(
                    f"after {timeout:.0f} s the exit codes are {self.codes}:\n"
                    + "\n----\n".join(texts)
                )
            time.sleep(0.02)
        return [code for code in self.codes if code is not None]

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank, if it still runs."""
        if self.poll()[rank] is None:
            os.kill(self.pids[rank], number)

    def kill(self) -> None:
        """End all that still run."""
        for rank in range(len(self.pids)):
            self.signal(rank, signal.SIGKILL)

    def text(self, rank: int) -> str:
        """Return what a rank has printed."""
        path = self.outputs[rank]
        # A rank killed before it was well started has said nothing.
        return path.read_text() if path.is_file() else ""


class ForkServer:
    """The client's side."""

    def __init__(self, nice: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.support.fork_server"],
            env={**rank_environment(0, 1, 0), "BERTDS_NICE": str(nice)},
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started: list[Ranks] = []
        self._warm = False

    def ask(self, request: dict[str, Any]) -> Any:
        """Send one request and return the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        command: list[str],
        world_size: int = 1,
        *,
        output: Path,
        plans: dict[int, dict[str, Any]] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Ranks:
        """Fork the ranks of one run; ``plans`` says which faults to plant in which rank."""
        if not self._warm:
            self.ask({"warm": command})
            self._warm = True
        return self._fork({"command": command}, world_size, output, plans or {}, environment or {})

    def run_engine_cases(self, cases: Path, world_size: int, output: Path) -> str:
        """Run a file of cases (see engine_worker.py) to the end; return what all ranks printed.

        Raises:
            AssertionError: a rank did not end with 0.
        """
        return self._run_to_the_end({"cases": str(cases)}, world_size, output)

    def run_bertds(self, command: list[str], world_size: int, output: Path) -> str:
        """Run ``bertds COMMAND`` on every rank to the end; return what all ranks printed.

        Raises:
            AssertionError: a rank did not end with 0.
        """
        return self._run_to_the_end({"bertds": command}, world_size, output)

    def _run_to_the_end(self, work: dict[str, Any], world_size: int, output: Path) -> str:
        ranks = self._fork(work, world_size, output, {}, {})
        codes = ranks.wait(300)
        texts = [ranks.text(rank) for rank in range(world_size)]
        assert codes == [0] * world_size, "\n----\n".join(texts)
        return "".join(texts)

    def _fork(
        self,
        work: dict[str, Any],
        world_size: int,
        output: Path,
        plans: dict[int, dict[str, Any]],
        environment: dict[str, str],
    ) -> Ranks:
        (port,) = free_ports(1)
        pids, outputs = [], []
        for rank in range(world_size):
            outputs.append(output / f"{output.name}_rank{rank}.txt")
            variables = rank_environment(rank, world_size, port)
            pids.append(
                self.ask(
                    {
                        **work,
                        "environment": {**variables, **environment},
                        "output": str(outputs[-1]),
                        "plan": plans.get(rank, {}),
                    }
                )
            )
        ranks = Ranks(self, pids, outputs)
        self._started.append(ranks)
        return ranks

    def run(self, command: list[str], world_size: int = 1, **options: Any) -> tuple[int, str]:
        """Run to the end; return rank 0's exit code and what it printed."""
        ranks = self.start(command, world_size, **options)
        return ranks.wait()[0], ranks.text(0)

    def close(self) -> None:
        """End everything that was started."""
        for ranks in self._started:
            ranks.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


def _become_rank(request: dict[str, Any]) -> None:
    os.setsid()
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    faulthandler.enable()
    os.environ.clear()
    os.environ.update(request["environment"])
    from bertds.cli import main
    from bertds.train import entry
    from tests.support import engine_worker
    from tests.support.fault_injection import plant

    plant(request["plan"])
    if "cases" in request:
        code = engine_worker.main(request["cases"])
    else:
        code = main(request["bertds"]) if "bertds" in request else entry(request["command"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _warm(command: list[str]) -> None:
    """Load the compiled kernels that every rank would load; starts no thread."""
    import numpy as np
    import torch

    from bertds.data.loader import cut, open_source
    from bertds.model.bert import BertForPreTraining
    from bertds.system.storage import is_url
    from bertds.train import parse_args
    from bertds.training.settings import read_settings

    args = parse_args(command)
    config, _ = read_settings(args.config, args.deepspeed_config, args.set)
    if is_url(config.data.path):
        return  # its driver would start threads, which no fork survives
    source = open_source(config.data, 1, split="train")
    source.samples_in_epoch(0)
    rows = source.open_block(0, [0]).gather(np.arange(1))  # the first shard may have no second row
    batch = cut(rows, 1, config.data.sequence_length)[0]
    model = BertForPreTraining(config.model, source.tokenizer.vocab_size)
    output = model(**batch.model_inputs())
    torch.autograd.grad(output.mlm_loss_sum, [model.cls.predictions.bias])


def serve() -> None:
    """Answer requests, one a line, until standard input ends."""
    import bertds.cli
    import bertds.train
    import bertds.training.build
    import tests.support.engine_worker
    import tests.support.fault_injection
    from bertds.engine.process_group import import_deepspeed

    assert bertds.cli and bertds.training.build and bertds.train
    assert tests.support.engine_worker and tests.support.fault_injection
    import_deepspeed()
    import torch
    import transformers  # noqa: F401

    # The tests' process may ignore them, after a run inside it; a rank must not inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    for name in LATE_IMPORTS:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    torch.set_num_threads(1)
    os.nice(int(os.environ.get("BERTDS_NICE", "0")))
    ended: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "warm" in request:
            _warm(request["warm"])
            answer: Any = True
        elif "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            if pid:
                ended[pid] = os.waitstatus_to_exitcode(status)
            answer = ended.get(request["poll"])
        else:
            answer = os.fork()
            ended.pop(answer, None)  # process numbers come again
            if answer == 0:
                try:
                    _become_rank(request)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(99)
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    serve()
