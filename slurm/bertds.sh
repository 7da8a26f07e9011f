#!/usr/bin/env bash
#SBATCH --job-name=bertds
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=2:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Run any bertds command on one node:
#
#   sbatch slurm/bertds.sh export runs/phase2 --out models/bert
#   sbatch --gpus-per-node=1 slurm/bertds.sh evaluate models/bert --data data/en
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

one_node "$@"
