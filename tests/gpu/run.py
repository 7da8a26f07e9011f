"""Runs the checks without pytest: ``python tests/gpu/run.py [--device cuda] [--json FILE]``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path

if not __package__:
    ROOT = Path(__file__).resolve().parents[2]
    sys.path[0] = str(ROOT)
    # A distribution that brings a package named tests would otherwise come before this folder.
    sys.modules["tests"] = types.ModuleType("tests")
    sys.modules["tests"].__path__ = [str(ROOT / "tests")]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def main(argv: list[str] | None = None) -> int:
    """Run all checks, print one line each, keep the result after each; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="names that begin so")
    args = parser.parse_args(argv)
    os.environ["DS_ACCELERATOR"] = args.device  # before DeepSpeed is imported
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    from bertds.system.atomic_files import write_json
    from tests.gpu.checks import CHECKS

    results = []
    for check in CHECKS:
        if args.only and not any(check.__name__.startswith(name) for name in args.only):
            continue
        began, why = time.monotonic(), ""
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(args.device, Path(folder))
            except Exception as error:
                traceback.print_exc()
                text = (
                    " ".join(str(error).split())
                    or "".join(
                        traceback.format_tb(error.__traceback__)[-1].split("\n")[1:2]
                    ).strip()
                )
                why = f"{type(error).__name__}: {text}"
        for (
            number,
            handler,
        ) in handlers.items():  # a run inside this process ignores them at its end
            signal.signal(number, handler)
        seconds = time.monotonic() - began
        verdict = "FAIL" if why else "PASS"
        name = check.__name__.replace("_", " ")
        print(f"{verdict}  {seconds:5.1f} s  {name}  {why}", flush=True)
        results.append({"name": name, "seconds": round(seconds, 2), "verdict": verdict, "why": why})
        if args.json:
            write_json(args.json, {"checks": results}, durable=False)
    return int(any(result["verdict"] == "FAIL" for result in results))


if __name__ == "__main__":
    sys.exit(main())
