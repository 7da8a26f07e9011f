#!/usr/bin/env bash
# Run sbatch with the settings of slurm/site.env (partition, account, more options in BERTDS_SBATCH):
#
#   slurm/submit.sh [sbatch options] slurm/phase1.sh [arguments]
#
# Prints the job id. If Slurm refuses the job, it prints one line and ends with exit code 2.
set -uo pipefail
# shellcheck source=slurm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1:-} in
  -h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  '') refuse "the script is missing (slurm/submit.sh --help)" ;;
esac
load_site
submit "$@"
