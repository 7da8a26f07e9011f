"""Jobs in containers. There is no image here: stand-ins take the programs' arguments, and start
what would run inside with no more of the environment and folders than the programs hand on."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import STEPS
from tests.slurm.lab import Lab
from tests.slurm.runs import metrics

pytestmark = pytest.mark.slurm

APPTAINER = """#!/bin/bash
# apptainer exec [options] image.sif COMMAND: the environment of the caller, but for PATH
until [ "$1" = image.sif ]; do shift; done
shift
echo inside >> @here@/inside
PATH=@python@:/usr/bin:/bin exec "$@"
"""

ENROOT = """#!/bin/bash
# enroot start [--mount M | --env NAME]... image.sqsh COMMAND: an empty environment, in /
shift
given=()
while [ "$1" != image.sqsh ]; do
  case $1 in
    --env) given+=("$2=${!2}") ;;
    --mount) [[ $2 =~ ^[^:]+:[^:]+:none:x-create=auto,rbind$ ]] || exit 9 ;;
    *) exit 9 ;;
  esac
  shift 2
done
shift
cd /
echo inside >> @here@/inside
exec env --ignore-environment PATH=@python@:/usr/bin:/bin "${given[@]}" "$@"
"""


def use(lab: Lab, program: str, text: str, image: str, tmp_path: Path) -> None:
    """Install a stand-in, and choose it in site.env."""
    stand_in = tmp_path / "bin" / program
    stand_in.parent.mkdir()
    python = str(Path(sys.executable).parent)
    stand_in.write_text(text.replace("@here@", str(tmp_path)).replace("@python@", python))
    stand_in.chmod(0o755)
    site = Path(lab.variables["BERTDS_SITE"])
    site.write_text(
        site.read_text() + f"PATH={stand_in.parent}:$PATH\nBERTDS_CONTAINER={program}\n"
        f"BERTDS_IMAGE={image}\n"
    )


def test_the_doctor_alone_in_apptainer(lab: Lab, repository: Path, tmp_path: Path) -> None:
    use(lab, "apptainer", APPTAINER, "image.sif", tmp_path)
    job = lab.sbatch("--nodes=3", repository / "slurm/doctor.sh")
    assert lab.wait(job)["ExitCode"] == "0:0", lab.log(job)
    pairs = re.findall(r"(node\d) - (node\d): ([\d.]+) Gbit/s", lab.log(job))
    assert {pair[:2] for pair in pairs} == {
        ("node1", "node2"),
        ("node1", "node3"),
        ("node2", "node3"),
    }
    assert all(float(speed) > 0 for *_, speed in pairs)
    assert (tmp_path / "inside").read_text() == "inside\n" * 4  # three nodes and the verdict


def test_two_nodes_train_in_enroot(
    lab: Lab, repository: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """Preflight and ranks: with an empty environment each would think that it is alone."""
    use(lab, "enroot", ENROOT, "image.sqsh", tmp_path)
    work = tmp_path / "work"  # relative paths are seen from where the job was submitted
    work.mkdir()
    job = lab.sbatch(
        "--nodes=2",
        f"--chdir={work}",
        repository / "slurm/phase1.sh",
        "--set",
        "run.dir=run",
        "schedule.total_steps=10",
        f"schedule.horizon_steps={STEPS}",
    )
    assert lab.wait(job)["ExitCode"] == "0:0", lab.log(job)
    assert "preflight: 2 nodes fit to train" in lab.log(job)
    trained = [line for line in metrics(work / "run") if "split" not in line]
    alone = [line for line in metrics(undisturbed) if "split" not in line]
    assert trained == alone[:10]
    assert (tmp_path / "inside").read_text() == "inside\n" * 5  # and two ranks
