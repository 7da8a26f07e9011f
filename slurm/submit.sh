#!/usr/bin/env bash
# sbatch with the settings of slurm/site.env (partition, account, more options in BERTDS_SBATCH):
#
#   slurm/submit.sh [sbatch options] slurm/phase1.sh [arguments]
#
# Prints the job's id. A refused submission is one line and exit code 2.
set -uo pipefail
# shellcheck source=slurm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1:-} in
  -h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  '') refuse "no script given (slurm/submit.sh --help)" ;;
esac
load_site
submit "$@"
