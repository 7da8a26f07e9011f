#!/usr/bin/env bash
#SBATCH --job-name=bertds-doctor
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=5
#SBATCH --output=%x-%j.log
#
# The preflight alone. Does each node see the data and the code? Are its GPUs healthy? How fast is the
# network between each pair of nodes?
#
#   sbatch --nodes=4 slurm/doctor.sh

set -uo pipefail

# Slurm runs a copy of this file from its spool folder: look for the clone it was submitted from.
home=${BERTDS_HOME:-${SLURM_SUBMIT_DIR:-.}}
[ -f "$home/slurm/common.sh" ] ||
  home=$(scontrol show job "${SLURM_JOB_ID:-0}" | sed -n "s#^ *Command=\(.*\)/slurm/[^/ ]*\.sh.*#\1#p")
if [ ! -f "$home/slurm/common.sh" ]; then
  echo "bertds: error: slurm/common.sh not found; submit from the clone or set BERTDS_HOME" >&2
  exit 2
fi
export BERTDS_HOME=$home
# shellcheck source=slurm/common.sh
. "$BERTDS_HOME/slurm/common.sh"

doctor
