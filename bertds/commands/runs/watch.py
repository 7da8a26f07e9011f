"""``bertds watch RUN``: a live report in a browser on this machine, or through SSH."""

from __future__ import annotations

import argparse
import getpass
import socket

from bertds.errors import EXIT_OK, ConfigError
from bertds.monitor.status import expand
from bertds.report.live import ADDRESS, LiveReport
from bertds.system.arguments import CommandParser, add_runs
from bertds.system.option_types import finite


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds watch",
        description="Serve a live report of runs on localhost. Run folders are never modified. "
        "Stop with Ctrl-C.",
    )
    add_runs(parser)
    parser.add_argument(
        "--port",
        type=int,
        default=8137,
        metavar="N",
        help="port; 0 = any free port (default: 8137)",
    )
    parser.add_argument(
        "--seconds",
        type=finite,
        default=30.0,
        metavar="S",
        help="seconds between two updates (default: 30)",
    )
    parser.add_argument("--title", default="BERT pre-training", help="title of the report")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C."""
    args = parse_args(argv)
    if not 0 <= args.port < 65536:
        raise ConfigError(f"--port {args.port}: allowed: 0 to 65535")
    if not args.seconds >= 1:
        raise ConfigError(f"--seconds {args.seconds}: must be at least 1")
    for run in args.runs:
        expand(run)  # raises if there is no run
    with LiveReport(args.runs, args.port, args.seconds, args.title) as server:
        print(f"http://{ADDRESS}:{server.port}/   (stop with Ctrl-C)")
        print(
            f"from another machine: ssh -N -L {server.port}:{ADDRESS}:{server.port} "
            f"{getpass.getuser()}@{socket.getfqdn()}",
            flush=True,
        )
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print()
    return EXIT_OK
