#!/usr/bin/env bash
#SBATCH --job-name=bertds-prep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Prepare a corpus on all cores of a node. It resumes after a preemption or time limit.
#
#   sbatch slurm/data_prep.sh --wiki dump.xml.bz2 --books books/ --vocab vocab.txt --out data/en
#
# The elements of an array prepare one corpus together, on as many nodes as are free. The result has
# the same bytes. Elements that start late, are preempted or die do not delay the others.
#
#   sbatch --array=1-8 slurm/data_prep.sh --wiki dump.xml.bz2 --vocab vocab.txt --out data/en
#
# To prepare several corpora at once, use --from: element I runs line I of a file. Each line has the
# arguments of one preparation, with its own --out.
#
#   sbatch --array=1-8 slurm/data_prep.sh --from corpora.txt
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

if [ "${1:-}" = --from ]; then
  [ -n "${SLURM_ARRAY_TASK_ID:-}" ] || refuse "--from needs an array: sbatch --array=1-N"
  whole SLURM_ARRAY_TASK_ID "$SLURM_ARRAY_TASK_ID"
  [ -f "${2:-}" ] || refuse "--from ${2:-}: no such file"
  line=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$2")
  [ -n "$line" ] || refuse "$2: line $SLURM_ARRAY_TASK_ID is missing"
  # The line has arguments, not a program. Quotes and wildcards work as in a shell, but nothing in the
  # line is executed.
  [[ $line != *[\$\`]* ]] ||
    refuse "$2, line $SLURM_ARRAY_TASK_ID: contains \$ or a backquote; variables and commands" \
      "are not expanded there, so write out paths and values"
  answer=$(xargs printf '%s\n' <<< "$line" 2>&1) ||
    refuse "$2, line $SLURM_ARRAY_TASK_ID: ${answer//$'\n'/ }"
  set --
  while IFS= read -r word; do
    [[ $word != \~/* ]] || word=$HOME/${word:2}
    if [[ $word == *[*?[]* ]] && found=$(compgen -G "$word"); then
      while IFS= read -r word; do set -- "$@" "$word"; done < <(sort <<< "$found")
    else
      set -- "$@" "$word"
    fi
  done <<< "$answer"
elif [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  set -- --executor slurm "$@"
fi
one_node prep "$@"
