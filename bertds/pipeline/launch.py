"""Trains one phase of the pipeline."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bertds.errors import EXIT_OK
from bertds.pipeline.stages import _say


def _train(args: argparse.Namespace, work: Path, phase: int, recipe: str) -> int:
    import torch

    from bertds.training.launch import launch
    from bertds.training.setting_changes import is_done
    from bertds.training.settings import read_settings

    run_dir = work / f"phase{phase}"
    _say(f"train phase {phase}")
    settings = [f"run.dir={run_dir}", f"data.path={work / 'data'}", *args.set]
    if phase == 1:
        settings.append(f"run.next_recipe={args.phase2}")
    else:
        settings.append(f"init.from={work / 'phase1'}")
    config, deepspeed = read_settings(recipe, None, settings)
    if is_done(run_dir, config, deepspeed.values):
        print(f"{run_dir}: done before", file=sys.stderr)
        return EXIT_OK
    began = time.monotonic()
    code = launch(
        ["--config", recipe, "--set", *settings],
        deepspeed,
        run_dir,
        args.processes or torch.cuda.device_count() or 1,
    )
    if code == EXIT_OK:
        print(f"phase {phase} took {time.monotonic() - began:.0f} s", file=sys.stderr)
    return code
