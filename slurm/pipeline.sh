#!/usr/bin/env bash
# The pipeline as a chain of jobs: prepare -> phase 1 -> phase 2 -> export -> evaluate.
#
#   slurm/pipeline.sh --work DIR [--nodes N] [--prep 'OPTIONS'] [--train 'OPTIONS'] SOURCES...
#
#   slurm/pipeline.sh --work work --nodes 4 --wiki dump.xml.bz2 --books books/ --vocab vocab.txt
#
# SOURCES are the arguments of preparation without --out. --nodes applies to both phases. --prep has
# more sbatch options for preparation and the small jobs, --train for training. All output is in DIR:
# data, phase1, phase2, model, scores.json, logs. After a failure, submit the chain again: it resumes
# after the finished jobs. Recipes and other settings come from slurm/site.env. The recipes, JSONs,
# vocabulary and folders of both phases are checked first (bertds pipeline --check).
set -euo pipefail
# shellcheck source=slurm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }

work='' nodes='' prep=() train=() sources=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --work | --nodes | --prep | --train)
      [ $# -gt 1 ] || refuse "$1 needs a value"
      case $1 in
        --work) work=$2 ;;
        --nodes) nodes=$2 ;;
        --prep) read -ra prep <<< "$2" ;;
        --train) read -ra train <<< "$2" ;;
      esac
      shift 2
      ;;
    *)
      sources+=("$1")
      shift
      ;;
  esac
done
[ -n "$work" ] || refuse "--work DIR is missing (slurm/pipeline.sh --help)"
[ ${#sources[@]} -gt 0 ] || [ -e "$work/data/manifest.json" ] ||
  refuse "nothing to prepare: set --wiki, --books, ... and --vocab or --train-vocab"
command -v sbatch > /dev/null || refuse "sbatch not found: run this on a login node of the cluster"

mkdir -p "$work/logs"
work=$(cd "$work" && pwd)
load_site
export BERTDS_DATA=$work/data BERTDS_RUNS=$work
[ -z "$nodes" ] || train=("--nodes=$nodes" "${train[@]}")

ids=() names=()
chain() { # chain NAME SBATCH_OPTIONS... SCRIPT ARGUMENTS...: submit a job after the previous one
  local name=$1 id
  shift
  local options=("--job-name=bertds-$name" "--output=$work/logs/%x-%j.log")
  # A phase ends with 0 only after its last step. So with afterok, later jobs wait for preempted and
  # requeued ones, and are cancelled after a failed one.
  [ ${#ids[@]} = 0 ] || options+=("--dependency=afterok:${ids[-1]}" --kill-on-invalid-dep=yes)
  if ! id=$(submit "${options[@]}" "$@"); then
    [ ${#ids[@]} = 0 ] || scancel "${ids[@]}"
    exit 2
  fi
  ids+=("$id") names+=("$name")
}

scripts=$BERTDS_HOME/slurm

check=(pipeline --check --work "$work")
for phase in 1 2; do
  phase_files "$phase"
  check+=("--phase$phase" "$RECIPE")
  [ -z "$JSON" ] || check+=("--phase$phase-json" "$JSON")
done
ranks=${BERTDS_RANKS_PER_NODE:-${SBATCH_GPUS_PER_NODE:-}}
ranks=${ranks##*:} # "a100:4"
# Other options of sbatch may set these numbers. Then only the trainer checks how the batch divides.
if is_number "$nodes" && is_number "$ranks"; then check+=(--processes "$((nodes * ranks))"); fi
[ ${#sources[@]} = 0 ] || check+=(--prep-arguments "${sources[@]}")
has_bertds='import sys, importlib.util as u; sys.exit(not (u.find_spec("bertds") and u.find_spec("torch")))'
if [ -z "${BERTDS_CONTAINER:-}" ] && (enter_software && python -c "$has_bertds") &> /dev/null; then
  (enter_software && exec python -m bertds.cli "${check[@]}") > /dev/null || exit 2
else
  say "note: bertds does not run on this node; a separate job checks recipes and vocabulary first"
  chain check "${prep[@]}" "$scripts/bertds.sh" "${check[@]}"
fi
if [ ${#sources[@]} -gt 0 ]; then
  chain prep "${prep[@]}" "$scripts/data_prep.sh" "${sources[@]}" --out "$work/data"
fi
chain phase1 "${train[@]}" "$scripts/phase1.sh"
chain phase2 "${train[@]}" "$scripts/phase2.sh"
chain export "${prep[@]}" "$scripts/bertds.sh" export "$work/phase2" --out "$work/model" --overwrite
chain evaluate "${prep[@]}" "--output=$work/scores.json" "--error=$work/logs/%x-%j.log" \
  --open-mode=truncate "$scripts/bertds.sh" evaluate "$work/phase2" --json

list=$(IFS=, && echo "${ids[*]}")
for i in "${!ids[@]}"; do printf '%-9s job %s\n' "${names[i]}" "${ids[i]}"; done
cat << END
watch:  squeue --jobs=$list
        tail -F $work/logs/*.log $work/phase1/metrics.jsonl
cancel: scancel ${ids[*]}
stop:   touch $work/phase1/STOP      (saves and holds the job)
END
