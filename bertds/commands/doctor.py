"""Checks whether this machine, or each node of a Slurm job, is fit to train.

```text
bertds doctor                     this machine: packages, GPUs, memory, disk
bertds doctor --cluster ...       in a job, on each node: prints its findings as JSON lines
bertds doctor --judge FILE ...    in the job's script: names the bad nodes
```

The batch scripts run the last two before the first step. ``sbatch slurm/doctor.sh`` runs only
these.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from bertds.display.words import count
from bertds.doctor import machine
from bertds.doctor import node as cluster_check
from bertds.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, DataError
from bertds.system.arguments import CommandParser
from bertds.system.atomic_files import explain_os_error
from bertds.system.idle_options import given_options, refuse_idle, refuse_together
from bertds.system.option_types import finite


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds doctor",
        description="Check whether this machine, or each node of a Slurm job, is fit to train.",
        epilog="Exit codes: 0 fit, 1 this machine or some nodes are not fit, 2 the same fault on "
        "all nodes.",
    )
    parser.add_argument("--data", default="", metavar="PATH", help="prepared data to check")
    parser.add_argument("--run", default="", metavar="DIR", help="run folder to check for writing")
    parser.add_argument(
        "--min-free-gb",
        type=finite,
        default=5.0,
        metavar="N",
        help="free disk space that the run folder needs (default: 5)",
    )
    group = parser.add_argument_group("checks of a Slurm job (used by slurm/doctor.sh)")
    group.add_argument(
        "--cluster", action="store_true", help="check this node and its connections to the others"
    )
    group.add_argument(
        "--judge", metavar="FILE", help="read the reports of the nodes and name bad nodes"
    )
    group.add_argument(
        "--level",
        choices=("full", "quick"),
        default="full",
        help="quick skips computation and bandwidth (default: full)",
    )
    group.add_argument("--gpus", type=int, default=0, metavar="N", help="number of GPUs per node")
    group.add_argument(
        "--seconds", type=finite, default=35.0, metavar="N", help="time limit (default: 35)"
    )
    group.add_argument("--nodes", default="", metavar="A,B,...", help="names of all nodes")
    group.add_argument("--partition", default="", help="partition of the job, for messages")
    group.add_argument(
        "--bad-nodes", metavar="FILE", help="write the names of bad nodes to this file"
    )
    args = parser.parse_args(argv)
    given = given_options(parser, args)
    refuse_together(given, "judge", ("cluster", "data", "run", "gpus", "seconds"))
    refuse_together(given, "cluster", ("nodes", "partition", "bad_nodes", "min_free_gb"))
    judged = dict.fromkeys(("nodes", "partition", "bad_nodes"), ("judge",))
    in_a_job = dict.fromkeys(("level", "gpus", "seconds"), ("cluster", "judge"))
    refuse_idle(given, {**judged, **in_a_job})
    return args


def main(argv: list[str] | None = None) -> int:
    """Check this machine or node, or judge the reports of the nodes."""
    args = parse_args(argv)
    if args.judge:
        return _judge(args)
    if args.cluster:
        return cluster_check.report(args.run, args.data, args.gpus, args.level, args.seconds)
    return _this_machine(args)


def _judge(args: argparse.Namespace) -> int:
    from bertds.doctor.verdict import judge, read_reports

    try:
        text = Path(args.judge).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{args.judge}: cannot be read ({error.strerror})") from error
    nodes = args.nodes.split(",")
    verdict = judge(
        read_reports(text.splitlines()), nodes, args.level, args.min_free_gb, args.partition
    )
    for note in verdict.notes:
        print(f"preflight: {note}", file=sys.stderr)
    for problem in verdict.everywhere:
        print(f"bertds: error: preflight: {problem}", file=sys.stderr)
    for node, problems in verdict.problems.items():
        for problem in problems:
            print(f"bertds: preflight: bad node {node}: {problem}", file=sys.stderr)
    if args.bad_nodes:
        Path(args.bad_nodes).write_text(",".join(verdict.problems), encoding="utf-8")
    # A problem of all nodes is a mistake in the set-up, so the job must not be requeued elsewhere.
    if verdict.everywhere:
        return EXIT_BAD_INPUT
    # No report at all is a failure too, though it blames no node.
    if verdict.problems or not text.strip():
        return EXIT_FAILED
    print(f"preflight: {count(len(nodes), 'node')} fit to train", file=sys.stderr)
    return EXIT_OK


# ---- one machine -----------------------------------------------------------------------------


def _this_machine(args: argparse.Namespace) -> int:
    failures = 0

    def tell(good: bool | None, what: str, found: str) -> None:
        nonlocal failures
        mark = {True: "ok  ", False: "FAIL", None: "note"}[good]
        failures += good is False
        print(f"{mark}  {what:<14} {found}")

    version = sys.version_info
    tell(version >= (3, 11), "python", f"{version.major}.{version.minor}.{version.micro}")
    with_gpu = _tell_gpus(tell)
    for finding in machine.all_findings(with_gpu=with_gpu):
        tell(*finding)
    if args.data:
        seen = cluster_check.data_facts(args.data)
        tell("error" not in seen, "data", seen.get("error", args.data))
    if args.run:
        try:
            Path(args.run).mkdir(parents=True, exist_ok=True)
            seen = cluster_check.folder_facts(args.run)
        except OSError as error:
            seen = {"error": str(explain_os_error(error, Path(args.run)))}
        room = seen.get("free_gb", 0.0)
        text = seen.get("error") or f"{args.run}: {room} GB free, {args.min_free_gb:g} GB needed"
        tell("error" not in seen and room >= args.min_free_gb, "run folder", text)
    return EXIT_FAILED if failures else EXIT_OK


def _tell_gpus(tell: Callable[[bool | None, str, str], None]) -> bool:
    """Test each GPU and report the results; return whether there is any."""
    try:
        import torch
    except ImportError as error:
        tell(False, "torch", f"cannot be imported: {error}")
        return False
    driver = cluster_check.gpu_facts()
    if not torch.cuda.is_available():
        if driver:
            tell(
                False,
                "GPU",
                f"the driver finds {count(len(driver), 'GPU')}, but torch {torch.__version__} "
                "finds none; install "
                "the torch build for the driver's CUDA version (pytorch.org)",
            )
        else:
            tell(None, "GPU", "none; training will run on the CPU")
        return bool(driver)
    results = cluster_check.try_gpus(torch.cuda.device_count())
    for index, result in results.items():
        name = torch.cuda.get_device_name(int(index))
        tell(result == "ok", f"GPU {index}", f"{name}, {result}")
    return True
