"""``make canary``: does the engine still fit the newest DeepSpeed and torch, and what has moved?

    python -m tests.end_to_end.canary [--deepspeed VERSION] [--torch VERSION] [--python FILE]

Makes an environment of its own with the newest DeepSpeed and torch, everything else as pinned,
runs the tests of gradients and layout there, and prints three tables: versions, the internals that
the engine relies on whose source or schema has changed, and the tests that failed. Exit code 1 if
one did. ``--python`` uses an environment that exists.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FREE = ("deepspeed", "torch", "triton")
"""What is not pinned in the canary's environment; Triton goes with torch."""
TESTS = (
    "test_gradient_oracle",
    "test_norms",
    "test_ranks",
    "test_engine",
    "test_low_precision",
    "test_universal",
)

# What bertds/engine reads or calls and DeepSpeed does not promise.
INTERNALS = {
    "deepspeed.runtime.engine:DeepSpeedEngine": (
        "allreduce_gradients",
        "buffered_allreduce_fallback",
        "is_gradient_accumulation_boundary",
        "was_step_applied",
        "_take_model_step",
    ),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer": (
        "step",
        "_optimizer_step",
        "update_lp_params",
        "scaled_global_norm",
        "reduce_ipg_grads",
        "get_grad_norm_direct",
        "unscale_and_clip_grads",
    ),
    "deepspeed.runtime.bf16_optimizer:BF16_Optimizer": (
        "step",
        "update_lp_params",
        "_update_hp_grad",
        "get_grads_for_norm",
    ),
    "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3": (
        "step",
        "_optimizer_step",
        "_partition_all_parameters",
        "_post_step",
        "_reassign_or_swap_out_partitioned_parameters",
        "_get_norm_groups",
        "unscale_and_clip_grads",
    ),
    "deepspeed.runtime.utils": ("get_global_norm_of_tensors", "clip_tensors_by_global_norm"),
    "deepspeed.runtime.zero.partition_parameters:Init": ("_partition_param",),
}
SCHEMAS = ("_flash_attention_forward", "_flash_attention_backward", "_fused_adam_", "_fused_adamw_")


def fingerprints() -> dict[str, Any]:
    """Return versions, and a hash of each internal's source or schema; None where it is gone."""
    import torch

    found: dict[str, Any] = {}
    for place, names in INTERNALS.items():
        module, _, owner = place.partition(":")
        try:
            holder: Any = importlib.import_module(module)
            holder = getattr(holder, owner) if owner else holder
        except (ImportError, AttributeError):
            holder = None
        for name in names:
            item = getattr(holder, name, None)
            source = inspect.getsource(item) if item is not None else None
            found[f"{module}:{owner + '.' if owner else ''}{name}"] = source and _hash(source)
    for name in SCHEMAS:
        operator = getattr(torch.ops.aten, name, None)
        found[f"torch.ops.aten.{name}"] = operator and _hash(str(operator.default._schema))
    from importlib.metadata import version

    return {"versions": {name: version(name) for name in ("deepspeed", "torch")}, "found": found}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def requirements(pyproject: Path, wanted: dict[str, str | None]) -> list[str]:
    """Return what the tests need, with the free packages at ``wanted`` versions, None = newest."""
    project = tomllib.loads(pyproject.read_text())["project"]
    dev = [r for r in project["optional-dependencies"]["dev"] if re.match(r"pytest|hypothesis", r)]
    needed = [r for r in project["dependencies"] if _name(r) not in FREE] + dev
    return needed + [f"{n}=={v}" if v else n for n, v in wanted.items()]


def constraints(pinned: Path) -> str:
    """Return the pins without those of the free packages."""
    lines = pinned.read_text().splitlines()
    return "\n".join(line for line in lines if _name(line) not in FREE) + "\n"


def _name(requirement: str) -> str:
    return re.split(r"[\s=<>!~;\[]", requirement.strip())[0].lower()


def moved(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return a line for each internal that is not as it was."""
    lines = []
    for name, was in before["found"].items():
        now = after["found"].get(name)
        if now != was:
            lines.append(f"  {'changed' if now and was else 'gone' if was else 'new':<8} {name}")
    return lines


def failures(report: Path) -> tuple[int, list[str]]:
    """Return the number of tests run, and those that failed with the first line of why."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = []
    for case in cases:
        for trouble in (*case.findall("failure"), *case.findall("error")):
            lines = (trouble.get("message") or "").strip().splitlines()
            failed.append(
                f"  {case.get('classname')}::{case.get('name')}  {(lines or [''])[0][:100]}"
            )
    return len(cases), failed


def make_environment(folder: Path, wanted: dict[str, str | None]) -> Path:
    """Install everything into a virtual environment of its own; returns its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    with tempfile.TemporaryDirectory() as temporary:
        pins = Path(temporary) / "constraints.txt"
        pins.write_text(constraints(REPOSITORY / "constraints.txt"))
        needed = requirements(REPOSITORY / "pyproject.toml", wanted)
        print("installing", ", ".join(needed[-len(wanted) :]), "and what they need", flush=True)
        subprocess.run(
            [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--upgrade",
                "--disable-pip-version-check",
                "-c",
                str(pins),
                *needed,
            ],
            check=True,
        )
    return python


def run_tests(python: Path, report: Path) -> None:
    """Run the tests that report whether the engine still fits."""
    files = [str(REPOSITORY / "tests" / "engine" / f"{name}.py") for name in TESTS]
    # Compiled operators belong to a version of DeepSpeed: not into the folder of the pinned one.
    operators = {"TORCH_EXTENSIONS_DIR": str(python.parents[1] / "torch_extensions")}
    environment = {**os.environ, **operators, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(
        [
            str(python),
            "-m",
            "pytest",
            "-q",
            "-m",
            "not gpu and not slurm",
            f"--junitxml={report}",
            "--tb=no",
            "-p",
            "no:cacheprovider",
            *files,
        ],
        cwd=REPOSITORY,
        env=environment,
    )


def _fingerprints_of(python: Path | str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [str(python), "-W", "ignore", "-m", "tests.end_to_end.canary", "--fingerprints"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> int:
    """Make the environment, run the tests, print what moved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deepspeed", metavar="VERSION", help="instead of the newest")
    parser.add_argument("--torch", metavar="VERSION", help="instead of the newest")
    parser.add_argument("--environment", type=Path, default=REPOSITORY / ".venv-canary")
    parser.add_argument("--python", type=Path, help="of an environment that exists")
    parser.add_argument("--fingerprints", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.fingerprints:
        print(json.dumps(fingerprints()))
        return 0
    wanted = {"deepspeed": arguments.deepspeed, "torch": arguments.torch}
    python = arguments.python or make_environment(arguments.environment, wanted)
    before, after = _fingerprints_of(sys.executable), _fingerprints_of(python)
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        run_tests(python, report)
        count, failed = failures(report)
    print("\nversions         here            canary")
    for name, version in before["versions"].items():
        print(f"  {name:<14} {version:<15} {after['versions'][name]}")
    changed = moved(before, after)
    print(f"\ninternals that moved: {len(changed)} of {len(before['found'])}", *changed, sep="\n")
    print(f"\ntests that failed: {len(failed)} of {count}", *failed, sep="\n")
    return 1 if failed or not count else 0


if __name__ == "__main__":
    raise SystemExit(main())
