#!/usr/bin/env bash
#SBATCH --job-name=bertds-phase2
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Phase 2 of pre-training, from the last checkpoint of phase 1. It waits until phase 1 is finished.
#
#   sbatch --nodes=4 slurm/phase2.sh [arguments of bertds/train.py, such as --set key=value]
#
# Recipe: BERTDS_PHASE2 in slurm/site.env, or --config.
# Data: BERTDS_DATA, or --set data.path=.
# Initial weights: BERTDS_RUNS/phase1, or --set init.from=.
# Run folder: BERTDS_RUNS/phase2, or --set run.dir=. See docs/slurm.md.
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

train_phase 2 "$@"
