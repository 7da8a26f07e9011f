from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slurm.lab import cannot_run

CLEAN = ("SLURM", "SBATCH", "BERTDS", "MASTER", "OMP_", "RANK", "WORLD")


def run(repository: Path, *arguments: str, script: str = "common.sh", **variables: str):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(CLEAN)}
    return subprocess.run(
        ["bash", str(repository / "slurm" / script), *arguments],
        text=True,
        capture_output=True,
        env={**environment, "BERTDS_SITE": "/dev/null", **variables},
        timeout=30,
    )


def plan(repository: Path, *arguments: str, **variables: str) -> dict[str, str]:
    answer = run(repository, "--print-plan", *arguments, **variables)
    assert answer.returncode == 0, answer.stderr
    return dict(line.split("=", 1) for line in answer.stdout.splitlines())


def slurm(nodes: int, gpus: int, **more: str) -> dict[str, str]:
    """The variables of a job as Slurm sets them, on nodes of 128 CPUs."""
    variables = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NNODES": str(nodes),
        "SLURM_JOB_NODELIST": f"gpu[0001-{nodes:04d}]" if nodes > 1 else "gpu0001",
        "SLURM_JOB_CPUS_PER_NODE": f"128(x{nodes})" if nodes > 1 else "128",
        # Without --ntasks Slurm fills this with CPUs: it must not be taken for a wish.
        "SLURM_TASKS_PER_NODE": f"128(x{nodes})" if nodes > 1 else "128",
    }
    if gpus:
        variables["SLURM_GPUS_ON_NODE"] = str(gpus)
    return {**variables, **more}


@pytest.mark.parametrize("nodes", [1, 2, 64, 1000])
@pytest.mark.parametrize("gpus", [0, 4, 8])
@pytest.mark.parametrize("tasks", ["none", "one per node", "one per GPU"])
def test_a_rank_per_gpu_on_every_node(repository: Path, nodes: int, gpus: int, tasks: str) -> None:
    more = {}
    if tasks == "one per node":
        more = {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NTASKS": str(nodes)}
    elif tasks == "one per GPU":
        more = {"SLURM_NTASKS_PER_NODE": str(gpus or 1), "SLURM_NTASKS": str(nodes * (gpus or 1))}
    found = plan(repository, **slurm(nodes, gpus, **more))
    ranks = gpus or 1
    assert found["nodes"] == str(nodes)
    assert found["gpus_per_node"] == str(gpus)
    assert found["ranks_per_node"] == str(ranks)
    assert found["world_size"] == str(nodes * ranks)
    assert found["cpus_per_rank"] == str(128 // ranks)
    assert found["master_addr"] == "gpu0001"
    assert 15000 <= int(found["master_port"]) < 30000
    for option in (
        f"--nodes={nodes}",
        f"--ntasks={nodes * ranks}",
        f"--ntasks-per-node={ranks}",
        f"--cpus-per-task={128 // ranks}",
        "--kill-on-bad-exit=1",
        "--export=ALL",
    ):
        assert f" {option} " in found["launch"]
    assert "gpus-per-task" not in found["launch"] and "gpu-bind" not in found["launch"]


@pytest.mark.parametrize("nodes", [1, 2, 64, 1000])
@pytest.mark.parametrize("gpus", [0, 4, 8])
def test_the_plan_needs_no_cluster(repository: Path, nodes: int, gpus: int) -> None:
    found = plan(repository, f"--nodes={nodes}", f"--gpus-per-node={gpus}", "--cpus-per-node=64")
    assert found["world_size"] == str(nodes * (gpus or 1))
    assert found["master_addr"] == "node0001"


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[08-10],x1", "n08"),
        ("n[3,5-7]", "n3"),
        ("rack[1-2]n[07-10,12],other", "rack1n07"),
        ("a-b.c[1-2].d,e", "a-b.c1.d"),
    ],
)
def test_the_first_node_of_a_list(repository: Path, nodelist: str, first: str) -> None:
    assert plan(repository, **slurm(2, 0, SLURM_JOB_NODELIST=nodelist))["master_addr"] == first


def test_the_number_of_tasks_without_gpus_is_the_users_choice(repository: Path) -> None:
    tasks = {"SLURM_NTASKS_PER_NODE": "4", "SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "4(x2)"}
    assert plan(repository, **slurm(2, 0, **tasks))["world_size"] == "8"
    del tasks["SLURM_NTASKS_PER_NODE"]  # sbatch --ntasks=8
    assert plan(repository, **slurm(2, 0, **tasks))["ranks_per_node"] == "4"
    assert plan(repository, **slurm(2, 8, BERTDS_RANKS_PER_NODE="2"))["world_size"] == "4"


def test_unequal_nodes(repository: Path) -> None:
    found = plan(repository, **slurm(3, 4, SLURM_JOB_CPUS_PER_NODE="128(x2),64"))
    assert found["cpus_per_rank"] == "16"
    answer = run(
        repository,
        "--print-plan",
        **slurm(2, 0, SLURM_NTASKS="5", SLURM_TASKS_PER_NODE="3,2"),
    )
    assert answer.returncode == 2 and "--ntasks-per-node" in answer.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_GPUS_PER_TASK": "1"}, "ask for them with --gpus-per-node"),
        ({"SLURM_NTASKS_PER_NODE": "16"}, "at most one rank per GPU"),
        ({"BERTDS_CONTAINER": "docker", "BERTDS_IMAGE": "x"}, "allowed are apptainer"),
        ({"BERTDS_CONTAINER": "apptainer"}, "needs BERTDS_IMAGE"),
        ({"BERTDS_SITE": "/does/not/exist"}, "/does/not/exist: no such file"),
    ],
)
def test_impossible_plans_are_one_line(
    repository: Path, variables: dict[str, str], message: str
) -> None:
    answer = run(repository, "--print-plan", **slurm(2, 8, **variables))
    assert answer.returncode == 2 and answer.stdout == ""
    assert message in answer.stderr and len(answer.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--nodes=0", "--nodes=0: must be a whole number, 1 or more"),
        ("--nodes=two", "--nodes=two: must be a whole number, 1 or more"),
        ("--gpus-per-node=-1", "--gpus-per-node=-1: must be a whole number, 0 or more"),
        ("--ntasks-per-node=x", "--ntasks-per-node=x: must be a whole number, 1 or more"),
        ("--node=4", "--node=4: allowed are --print-plan, --nodes=, --gpus-per-node=,"),
    ],
)
def test_mistakes_in_options_are_one_line(repository: Path, option: str, message: str) -> None:
    answer = run(repository, "--print-plan", option)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith(f"bertds: error: {message}")
    assert len(answer.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["common.sh", "pipeline.sh", "submit.sh"])
def test_scripts_run_by_hand_say_what_to_do(repository: Path, script: str) -> None:
    answer = run(repository, "--help", script=script)
    assert answer.returncode == 0 and f"slurm/{script} " in answer.stdout
    answer = run(repository, script=script)
    assert answer.returncode == 2 and answer.stdout == ""
    assert re.fullmatch(rf"bertds: error: .*{script} .*--help.*\n", answer.stderr)


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ("apptainer", r"rank\.sh apptainer exec --nv --bind \S+:/data --pwd \S+ i\.sif python"),
        ("pyxis", r"--container-image=i\.sif .*--container-mounts=\S+:/data .*rank\.sh python"),
        ("enroot", r"rank\.sh bash \S+/slurm/enroot\.sh i\.sif \S+,/tmp/s:/tmp/s,/x:/data bertds"),
    ],
)
def test_containers(repository: Path, container: str, expected: str) -> None:
    found = plan(
        repository,
        **slurm(
            2,
            8,
            BERTDS_CONTAINER=container,
            BERTDS_IMAGE="i.sif",
            BERTDS_MOUNTS="/x:/data",
            BERTDS_SCRATCH="/tmp/s",
        ),
    )
    assert re.search(expected, found["launch"])


def test_the_environment_wins_over_the_site(repository: Path, tmp_path: Path) -> None:
    site = tmp_path / "site.env"
    site.write_text(
        'BERTDS_RANKS_PER_NODE=2\nOMP_NUM_THREADS=3\nBERTDS_CONTAINER="apptainer"\n'
        "BERTDS_IMAGE=a.sif\n"
    )
    found = plan(
        repository, **slurm(2, 0, BERTDS_SITE=str(site), OMP_NUM_THREADS="5", BERTDS_IMAGE="b c")
    )
    assert (found["ranks_per_node"], found["omp_num_threads"]) == ("2", "5")
    assert "b c python" in found["launch"]


def test_a_site_file_is_a_script_of_the_user(repository: Path, tmp_path: Path) -> None:
    site = tmp_path / "site.env"
    site.write_text("PATH=$PATH:$NO_SUCH_VARIABLE\nBERTDS_RANKS_PER_NODE=3\n[ -e /nowhere ]\n")
    assert plan(repository, **slurm(2, 0, BERTDS_SITE=str(site)))["ranks_per_node"] == "3"
    site.write_text('BERTDS_RUNS="/runs\n')
    answer = run(repository, "--print-plan", **slurm(2, 0, BERTDS_SITE=str(site)))
    assert answer.returncode == 2 and answer.stdout == ""
    assert f"{site}: line 1: unexpected EOF" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_outside_a_job_the_scripts_say_what_to_do(repository: Path) -> None:
    for script in ("phase1.sh", "phase2.sh", "data_prep.sh", "bertds.sh", "doctor.sh"):
        answer = run(repository, script=script, BERTDS_HOME=str(repository))
        assert answer.returncode == 2
        assert "not a Slurm job; submit it: sbatch" in answer.stderr


@pytest.fixture
def chain(repository: Path, tmp_path: Path):
    """Return chain(arguments): submit with a made-up sbatch; the answer and what was submitted."""
    submitted = tmp_path / "submitted"
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "sbatch").write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {submitted}\nwc -l < {submitted}\n'
    )
    (commands / "sbatch").chmod(0o755)

    def submit(*arguments: str, **variables: str):
        found = f"{commands}:{os.environ['PATH']}"
        command = ["--work", str(tmp_path / "work"), *arguments]
        answer = run(repository, *command, script="pipeline.sh", PATH=found, **variables)
        jobs = submitted.read_text().splitlines() if submitted.exists() else []
        return answer, [re.sub(r".*--job-name=bertds-(\w+) .*", r"\1", job) for job in jobs], jobs

    return submit


def test_phase_two_is_checked_before_anything_is_submitted(chain, tmp_path: Path) -> None:
    sources = ("--wiki", "x.bz2", "--train-vocab", "3000")
    phases = {"BERTDS_PHASE1": "tiny_cpu_phase1", "BERTDS_PHASE2": "large_phase2"}
    answer, names, _ = chain(*sources, **phases)
    assert (answer.returncode, answer.stdout, names) == (2, "", [])
    assert re.fullmatch(r"bertds: error: .*its hidden_size is 128, this run's .*\n", answer.stderr)
    phases["BERTDS_PHASE2"] = "tiny_cpu_phase2"
    answer, names, _ = chain(*sources, **phases)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert names == ["prep", "phase1", "phase2", "export", "evaluate"]


def test_if_bertds_cannot_run_on_the_login_node_the_job_checks_first(chain) -> None:
    answer, names, jobs = chain(
        *("--nodes", "4", "--wiki", "x.bz2", "--vocab", "v.txt"),
        BERTDS_CONTAINER="pyxis",
        BERTDS_IMAGE="i.sqsh",
        SBATCH_GPUS_PER_NODE="a100:8",
    )
    assert answer.returncode == 0 and "a separate job checks" in answer.stderr
    assert names == ["check", "prep", "phase1", "phase2", "export", "evaluate"]
    assert "pipeline --check" in jobs[0] and "--processes 32" in jobs[0]
    assert jobs[0].endswith("--prep-arguments --wiki x.bz2 --vocab v.txt")
    assert "--dependency=afterok:1 --kill-on-invalid-dep=yes" in jobs[1]


def test_no_script_holds_a_hyper_parameter(repository: Path) -> None:
    from bertds.config.load import to_dict
    from bertds.config.recipe import Config

    keys = {f"{section}.{key}" for section, values in to_dict(Config()).items() for key in values}
    keys |= {"train_batch_size", "train_micro_batch_size", "--lr", "total_steps", "warmup"}
    allowed = {"run.dir", "data.path", "init.from"}  # where things are, not what is trained
    for script in (repository / "slurm").glob("*.sh"):
        text = script.read_text()
        assert [key for key in keys - allowed if key in text] == [], script


@pytest.mark.slow
def test_shellcheck_is_clean(repository: Path) -> None:
    if not shutil.which("shellcheck"):
        cannot_run("shellcheck is not installed")
    scripts = [*sorted((repository / "slurm").glob("*.sh")), repository / "tests/slurm/cluster.sh"]
    answer = subprocess.run(
        ["shellcheck", "--external-sources", *map(str, scripts)],
        cwd=repository,
        text=True,
        capture_output=True,
    )
    assert answer.returncode == 0, answer.stdout


def test_modules_and_a_virtual_environment(repository: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/true")
    # A job that was submitted without its user's functions finds the command where it is installed.
    init = tmp_path / "modules" / "init" / "bash"
    init.parent.mkdir(parents=True)
    init.write_text("module() { echo module $* $NO_SUCH_VARIABLE; [ $2 != nosuch ]; }\n")
    code = (
        "set -u; . slurm/common.sh; enter_software; command -v python; "
        "echo $NCCL_SOCKET_IFNAME $TRITON_CACHE_DIR"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(CLEAN)}
    site = {
        "BERTDS_MODULES": "gcc cuda/12",
        "BERTDS_VENV": str(tmp_path / "venv"),
        "BERTDS_INTERFACE": "ib0",
        "BERTDS_SCRATCH": "/scratch",
        "MODULESHOME": str(tmp_path / "modules"),
    }
    answer = subprocess.run(
        ["bash", "-c", code],
        cwd=repository,
        env={**environment, **site},
        text=True,
        capture_output=True,
    )
    assert answer.stdout.splitlines() == [
        "module load gcc cuda/12",
        str(python),
        "ib0 /scratch/triton",
    ]
    for name, value, message in (
        ("BERTDS_VENV", "/does/not/exist", "BERTDS_VENV=/does/not/exist: bin/python is missing"),
        ("BERTDS_MODULES", "nosuch", "module load nosuch failed"),
    ):
        answer = subprocess.run(
            ["bash", "-c", code],
            cwd=repository,
            env={**environment, **site, name: value},
            text=True,
            capture_output=True,
        )
        assert (answer.returncode, answer.stderr) == (2, f"bertds: error: {message}\n")
