"""Check one GPU in eight minutes: is bertds correct on it, and as fast as promised?

```text
make gpu-check [DATA=PREPARED_FOLDER]
python benchmarks/gpu_check.py [--data PREPARED_FOLDER] [--only STAGE ...] [--minutes 8]
    [--out FILE.json] [--tiny --device cpu]
python benchmarks/gpu_check.py --show FILE.json ... [--picture FILE.png]
```

Each stage has its own process and time limit:

- machine, and ceilings (product, copy);
- the GPU test suite;
- attention, and forward and backward of the model alone;
- a step compared with transformers' (base and large, 128 and 512 tokens);
- the optimizers;
- three training runs through ``train.py``.

The table and the result are written after each stage, so an interrupted check keeps its results.
The check needs neither network nor pytest, and works in a clone that is not installed. Without
``--data`` it generates text whose row lengths vary about as much as Wikipedia's.

The result is ``benchmarks/results/gpu_NAME_DATE.json`` with a picture of the same name. If your GPU
is not there yet, send it in a pull request. The exit code is 1 if a stage fails or a promise is not
kept.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import gpu_report
from benchmarks.common import draw
from benchmarks.gpu_plan import ROOT, Plan, Stage, read_json
from bertds.system.atomic_files import write_json


class Check:
    """Runs stages and keeps their results.

    Args:
        args: the command line.
        work: a folder for what the stages write, logs among it.
    """

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args = args
        self.work = work
        self.began = time.monotonic()
        self.result: dict[str, Any] = {"stages": {}, "figures": {}}
        self.out: Path | None = args.out

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.args.minutes * 60 - (time.monotonic() - self.began)

    def run(self, stage: Stage) -> dict[str, Any]:
        """Run one stage, print its table, write the result; returns what it measured."""
        place = self.work / stage.name.replace(" ", "_")
        log = place.with_suffix(".log")
        entry: dict[str, Any] = {"status": "not run: no time left", "seconds": 0.0}
        self.result["stages"][stage.name] = entry
        if self.left() > 5:
            print(f"\n{stage.name} ...", flush=True)
            began = time.monotonic()
            entry["status"] = self._process(stage, place, log)
            entry["seconds"] = round(time.monotonic() - began, 1)
            found = stage.read(place)
            if place.is_dir():  # a run's checkpoint takes gigabytes
                shutil.rmtree(place)
            if found:
                if self.result.get("peak") is None and "matmul_tflops" in found:
                    self.result["peak"] = found["matmul_tflops"] * 1e12
                    self.result["note"] = "MFU against the product measured here"
                self._add_mfu(found)
                entry["result"] = found
                self.result["figures"].update(gpu_report.figures_of(stage.name, found))
                print(gpu_report.table(gpu_report.TABLES[stage.name.split()[0]](found)))
            elif entry["status"] == "ok":
                entry["status"] = "failed: it measured nothing"
            if entry["status"] != "ok":
                entry["log"] = last_lines(log)
                print("\n".join(f"  | {line}" for line in entry["log"]))
        print(f"{stage.name}: {entry['status']}, {entry['seconds']:.0f} s", flush=True)
        self.write()
        return entry.get("result", {})

    def _process(self, stage: Stage, place: Path, log: Path) -> str:
        words = [
            str(place) if w == "OUT" else w.replace("=OUT", f"={place}") for w in stage.command
        ]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        environment |= {"HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": self.args.device}
        left = max(1.0, self.left())
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=min(stage.limit, left))
            except subprocess.TimeoutExpired:
                if left < stage.limit:
                    return f"stopped after {left:.0f} s: no time left"
                return f"stopped after {stage.limit:.0f} s"
            finally:
                if process.poll() is None:  # its own session: whatever it started goes as well
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if code == 0:
            return "ok"
        return f"failed ({code}): {(last_lines(log) or ['no output'])[-1][:160]}"

    def _add_mfu(self, found: dict[str, Any]) -> None:
        peak = self.result.get("peak")
        for row in [found, *found.get("variants", {}).values()]:
            if peak and "tflops" in row:
                row["mfu"] = row["tflops"] * 1e12 / peak

    def write(self) -> None:
        """Write what there is so far."""
        verdicts = gpu_report.judge(self.result["figures"], self.result.get("gpu"))
        self.result["verdicts"] = verdicts
        self.result["seconds"] = round(time.monotonic() - self.began, 1)
        if self.out is not None:
            write_json(self.out, self.result, durable=False)

    def finish(self) -> int:
        """Print the verdicts, draw the picture; returns the exit code."""
        print("\n" + "\n".join(gpu_report.verdict_lines(self.result["verdicts"])))
        if self.result["data"] == "made up":
            print("made-up text; DATA=PREPARED_FOLDER measures with real rows")
        assert self.out is not None
        draw(self.out.with_suffix(".png"), gpu_report.paint(self.result), width=14.0)
        print(f"{self.result['seconds']:.0f} s; {self.out}, {self.out.with_suffix('.png')}")
        bad = [name for name, entry in self.result["stages"].items() if entry["status"] != "ok"]
        failed = [row["figure"] for row in self.result["verdicts"] if row["verdict"] == "FAIL"]
        return 1 if bad or failed else 0


def show(paths: list[Path], picture: Path | None) -> None:
    """Show stored results as one: of each stage the last that measured something."""
    results = [read_json(path) for path in paths]
    merged = {**results[-1], "stages": {}, "figures": {}}
    for result in results:
        found = {n: stage for n, stage in result["stages"].items() if "result" in stage}
        merged["stages"].update(found)
        merged["figures"].update(result["figures"])
    verdicts = gpu_report.judge(merged["figures"], merged.get("gpu"))
    print("\n".join(gpu_report.verdict_lines(verdicts)))
    draw(picture, gpu_report.paint(merged), width=14.0)


def last_lines(log: Path, count: int = 12) -> list[str]:
    """Return the end of a stage's output."""
    return log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-count:]


def result_file(name: str, date: str) -> Path:
    """Return a path in benchmarks/results that is not taken."""
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    folder = ROOT / "benchmarks" / "results"
    path, number = folder / f"gpu_{words}_{date}.json", 1
    while path.exists():
        number += 1
        path = folder / f"gpu_{words}_{date}_{number}.json"
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="a prepared folder; default: made-up text")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="STAGE",
        help="only stages whose names begin with STAGE: ceilings, tests, run, ...",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit for all stages (8)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file of the result")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes that take seconds, for CI")
    parser.add_argument(
        "--show",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="show stored results and measure nothing; later files win",
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="with --show: draw it (PNG, SVG)"
    )
    args = parser.parse_args(argv)
    if args.show:
        show(args.show, args.picture)
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        check = Check(args, Path(folder))
        command = [
            "benchmarks/gpu_stages.py",
            "machine",
            "--json",
            "OUT",
            "--device",
            args.device,
            "--command=" + shlex.join(sys.argv[1:] if argv is None else argv),
        ]
        machine = check.run(Stage(name="machine", limit=60, command=command, read=read_json))
        if not machine:
            print(check.result["stages"]["machine"]["status"], file=sys.stderr)
            return 1
        check.result = {**machine, "data": args.data or "made up", **check.result}
        if check.out is None:
            check.out = result_file(machine["gpu"] or machine["machine"], machine["date"])
        data = args.data
        if not data:
            from benchmarks.made_up_shards import write_prepared

            data = str(write_prepared(Path(folder) / "data", 200_000 if args.tiny else 6_000_000))
        plan = Plan(machine, data, args.device, tiny=args.tiny)
        for stage in plan.stages():
            if not args.only or any(stage.name.startswith(word) for word in args.only):
                check.run(stage)
        return check.finish()


if __name__ == "__main__":
    raise SystemExit(main())
