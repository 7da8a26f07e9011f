"""``--executor``: decides where the tasks of one preparation run.

- ``local``: here. ``--task-count N --task-index K`` in N shells, on any hosts that share the
  folder, gives N tasks.
- ``slurm``: inside an element of an array job, this element is one task. Elsewhere an array of
  ``--task-count`` elements is submitted (slurm/data_prep.sh).
- ``ray``: ``--task-count`` tasks on the existing Ray cluster, or on this machine.

However they are started, the tasks cooperate only through the output folder
(data_prep/workers/team.py).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bertds.errors import EXIT_BAD_INPUT, BertdsError, ConfigError, DataError
from bertds.system.shipped_files import IMPORT_ROOT, shipped_folder
from data_prep import progress
from data_prep.options import CommandLine
from data_prep.prepare import forecast, prepare
from data_prep.request import PrepRequest

_OWN_OPTIONS = ("--executor", "--task-count", "--task-index")


def execute(command: CommandLine, argv: Sequence[str]) -> int:
    """Run a preparation, here or elsewhere.

    Args:
        command: the parsed command line.
        argv: the unparsed arguments, to be passed on.

    Returns:
        0.

    Raises:
        BertdsError: a message of one line.
    """
    request, executor, dry_run = command
    if dry_run:
        forecast(request)
        return 0
    if executor == "slurm" and "SLURM_ARRAY_TASK_ID" in os.environ:
        index, count = array_element(os.environ)
        request = replace(request, task_index=index, task_count=count)
    elif executor != "local":
        if request.task_count < 2:
            raise ConfigError(
                f"--executor {executor} requires --task-count N of at least 2 (--workers sets the "
                "number of processes per task)"
            )
        start = _submit if executor == "slurm" else _run_on_ray
        return start(request, without_own_options(argv))
    prepare(request)
    return 0


def array_element(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return index and count of this element of a Slurm array (``--array=1-16:5`` has 4)."""
    numbers = []
    for name, default in (("ID", "0"), ("MIN", "0"), ("STEP", "1"), ("COUNT", "1")):
        text = environment.get(f"SLURM_ARRAY_TASK_{name}", default)
        if not text.isdecimal():
            raise ConfigError(f"SLURM_ARRAY_TASK_{name} is {text!r}; it must be a whole number")
        numbers.append(int(text))
    number, first, step, count = numbers
    return (number - first) // max(1, step), count


def without_own_options(argv: Sequence[str]) -> list[str]:
    """Return the arguments without those that decide where to run."""
    kept: list[str] = []
    skip = False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        if skip:
            skip = False
        elif name in _OWN_OPTIONS:
            skip = not equals  # the value is the next argument
        else:
            kept.append(argument)
    return kept


def _submit(request: PrepRequest, argv: list[str]) -> int:
    """Submit the array job and print how to watch it.

    Raises:
        ConfigError: there are no job scripts, sbatch is missing, or it failed.
    """
    scripts = shipped_folder("slurm")
    script = scripts / "data_prep.sh"
    if not script.is_file():
        raise ConfigError(
            f"{script}: not found; --executor slurm needs a clone of bertds, because an installed "
            "package does not include slurm/"
        )
    command = [
        "bash",
        str(scripts / "submit.sh"),
        f"--array=0-{request.task_count - 1}",
        str(script),
        *argv,
    ]
    # submit.sh reads the site's settings and prints only the job id.
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode == 127 or "sbatch: command not found" in answer.stderr:
        raise ConfigError("--executor slurm: sbatch is missing; run this command on a login node")
    job = answer.stdout.strip()
    if answer.returncode != 0 or not job:
        lines = answer.stderr.strip().splitlines() or ["sbatch returned no job id"]
        raise ConfigError(lines[-1].removeprefix("bertds: error: "))
    progress.say(f"submitted: job {job}, {request.task_count} tasks")
    progress.say(f"watch:     squeue --jobs={job}")
    progress.say(f"cancel:    scancel {job}")
    return 0


def _run_on_ray(request: PrepRequest, argv: list[str]) -> int:
    """Run the tasks on a Ray cluster and wait for them; Ray restarts tasks that die.

    Raises:
        ConfigError: Ray is not installed.
        BertdsError: a task failed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--executor ray requires the package ray; install it with: pip install 'bertds[ray]'"
        ) from error
    workers = max(1, request.workers)
    paths = filter(None, [str(IMPORT_ROOT), os.environ.get("PYTHONPATH")])
    # This joins the cluster of RAY_ADDRESS or of this machine, or starts a new one here.
    ray.init(
        ignore_reinit_error=True,
        log_to_driver=True,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
    )
    try:
        part = ray.remote(num_cpus=workers, max_retries=3)(run_part)
        # Relative paths in the arguments must mean the same in Ray's processes.
        cwd = os.getcwd()
        tasks = [
            part.remote(
                [
                    *argv,
                    "--workers",
                    str(workers),
                    "--task-count",
                    str(request.task_count),
                    "--task-index",
                    str(index),
                ],
                cwd,
            )
            for index in range(request.task_count)
        ]
        answers = []
        for task in tasks:
            try:
                answers.append(ray.get(task))
            except ray.exceptions.RayError as error:  # died again after its restarts
                answers.append((1, f"a Ray task failed: {str(error).splitlines()[0]}"))
    finally:
        ray.shutdown()
    # All tasks are awaited before the first error is reported.
    failed = next((answer for answer in answers if answer[0] != 0), None)
    if failed is not None:
        raise (DataError if failed[0] == EXIT_BAD_INPUT else BertdsError)(failed[1])
    progress.say(f"prepared {request.out} by {request.task_count} Ray tasks")
    return 0


def run_part(argv: list[str], cwd: str) -> tuple[int, str]:
    """Run one task in a Ray process. Returns exit code and error message."""
    from data_prep.options import parse_args

    os.chdir(cwd)
    try:
        return execute(parse_args(argv), argv), ""
    except BertdsError as error:
        return error.exit_code, str(error)
