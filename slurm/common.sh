#!/usr/bin/env bash
# Functions of the batch scripts: the site's settings, the launch plan, the preflight, the start of
# the ranks, and the decision after they ended. phase1.sh and the others source this file. Run as a
# command, it prints its launch plan without a cluster:
#
#   slurm/common.sh --print-plan [--nodes=N] [--gpus-per-node=G] [--ntasks-per-node=T]
#                   [--cpus-per-node=C]
#
# Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped early and could not be requeued.

BERTDS_HOME=${BERTDS_HOME:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
export BERTDS_HOME

# Settings that the environment or slurm/site.env may set; the environment wins.
SITE_SETTINGS=(
  BERTDS_DATA BERTDS_RUNS BERTDS_PHASE1 BERTDS_PHASE1_JSON BERTDS_PHASE2 BERTDS_PHASE2_JSON
  BERTDS_VENV BERTDS_MODULES BERTDS_CONTAINER BERTDS_IMAGE BERTDS_MOUNTS BERTDS_SCRATCH
  BERTDS_INTERFACE BERTDS_RANKS_PER_NODE BERTDS_PREFLIGHT BERTDS_PREFLIGHT_SECONDS BERTDS_MIN_FREE_GB
  BERTDS_MAX_CRASHES BERTDS_RESTARTS BERTDS_SBATCH OMP_NUM_THREADS SBATCH_PARTITION SBATCH_ACCOUNT SBATCH_QOS SBATCH_TIMELIMIT
  SBATCH_CONSTRAINT SBATCH_RESERVATION SBATCH_GPUS_PER_NODE
)

say() { # print one line; control characters in a value are replaced
  local text=$*
  printf 'bertds: %s\n' "${text//[[:cntrl:]]/?}" >&2
}

refuse() { # bad input: print one line and exit with 2; the job is not requeued
  say "error: $*"
  exit 2
}

# Bash arithmetic evaluates its operands: "a[$(command)]" runs the command. So every value from a
# file, an option or the environment must match as digits before any (( )).
is_number() { [[ ${1-} =~ ^(0|[1-9][0-9]{0,14})$ ]]; }

number_or() { # number_or DEFAULT VALUE: the value if it is a whole number, else the default
  if is_number "${2-}"; then echo "$2"; else echo "$1"; fi
}

plain() { # plain TEXT: text of a file for a message or a command: one short line, no control characters
  local text=${1:0:200}
  printf '%s' "${text//[![:alnum:]._:,()\[\]-]/?}"
}

whole() { # whole NAME VALUE [LEAST]: refuse what is not a whole number
  if ! is_number "$2" || (($2 < ${3:-0})); then
    refuse "$1=$2: must be a whole number, ${3:-0} or more"
  fi
}

# ---- the site ------------------------------------------------------------------------------

load_site() {
  local file=${BERTDS_SITE:-$BERTDS_HOME/slurm/site.env} name kept=() wrong
  for name in "${SITE_SETTINGS[@]}"; do
    [ -z "${!name+set}" ] || kept+=("$(declare -p "$name")")
  done
  if [ -e "$file" ]; then
    wrong=$(bash -n "$file" 2>&1) || refuse "${wrong%%$'\n'*}"
    set -a +u # it may use unset variables (PATH=...:$LD_LIBRARY_PATH), or activate an environment
    # shellcheck source=/dev/null
    . "$file" || true # the last line may be a test that fails
    set +a -u
  elif [ -n "${BERTDS_SITE:-}" ]; then
    refuse "BERTDS_SITE=$file: no such file"
  fi
  local line
  for line in "${kept[@]}"; do eval "declare -gx ${line#declare -* }"; done
  BERTDS_RUNS=${BERTDS_RUNS:-runs}
  export BERTDS_RUNS
}

enter_software() { # load modules, then the virtual environment; a container starts with each command
  local start code=0
  if [ -n "${BERTDS_MODULES:-}" ]; then
    set +u # module scripts use unset variables
    for start in /etc/profile.d/{modules,lmod,z00_lmod}.sh "${MODULESHOME:-/none}/init/bash"; do
      # shellcheck source=/dev/null
      command -v module > /dev/null 2>&1 || [ ! -f "$start" ] || . "$start"
    done
    command -v module > /dev/null 2>&1 ||
      refuse "BERTDS_MODULES=$BERTDS_MODULES, but this node has no 'module' command"
    # shellcheck disable=SC2086 # several modules
    module load $BERTDS_MODULES || code=$?
    set -u
    [ "$code" = 0 ] || refuse "module load $BERTDS_MODULES failed"
  fi
  if [ -z "${BERTDS_CONTAINER:-}" ]; then
    local venv=${BERTDS_VENV:-}
    [ -n "$venv" ] || [ ! -x "$BERTDS_HOME/.venv/bin/python" ] || venv=$BERTDS_HOME/.venv
    if [ -n "$venv" ]; then
      [ -x "$venv/bin/python" ] || refuse "BERTDS_VENV=$venv: bin/python is missing"
      PATH=$venv/bin:$PATH
    fi
    command -v python > /dev/null || refuse "python not found: set BERTDS_VENV, BERTDS_MODULES, or" \
      "BERTDS_CONTAINER and BERTDS_IMAGE in slurm/site.env"
  fi
  PYTHONPATH=$BERTDS_HOME${PYTHONPATH:+:$PYTHONPATH}
  export PATH PYTHONPATH PYTHONUNBUFFERED=1
  if [ -n "${BERTDS_INTERFACE:-}" ]; then
    export GLOO_SOCKET_IFNAME=$BERTDS_INTERFACE NCCL_SOCKET_IFNAME=$BERTDS_INTERFACE
  fi
  if [ -n "${BERTDS_SCRATCH:-}" ]; then # node-local: compiler caches do not belong on NFS
    export TMPDIR=$BERTDS_SCRATCH TRITON_CACHE_DIR=$BERTDS_SCRATCH/triton
    export TORCH_EXTENSIONS_DIR=$BERTDS_SCRATCH/torch_extensions
  fi
}

software() { # sets SRUN_CONTAINER (options of srun) and PYTHON (the command inside a task)
  SRUN_CONTAINER=() PYTHON=(python)
  local image=${BERTDS_IMAGE:-} mounts=${BERTDS_MOUNTS:-} scratch=${BERTDS_SCRATCH:-} nv=()
  [ -n "${BERTDS_CONTAINER:-}" ] || return 0
  [ -n "$image" ] || refuse "BERTDS_CONTAINER=$BERTDS_CONTAINER needs BERTDS_IMAGE"
  mounts=$BERTDS_HOME:$BERTDS_HOME,$PWD:$PWD${scratch:+,$scratch:$scratch}${mounts:+,$mounts}
  case $BERTDS_CONTAINER in
    apptainer | singularity)
      ((GPUS_PER_NODE == 0)) || nv=(--nv)
      PYTHON=("$BERTDS_CONTAINER" exec "${nv[@]}" --bind "$mounts" --pwd "$PWD" "$image" python)
      ;;
    pyxis)
      SRUN_CONTAINER=("--container-image=$image" "--container-mounts=$mounts"
        "--container-workdir=$PWD")
      ;;
    enroot) PYTHON=(bash "$BERTDS_HOME/slurm/enroot.sh" "$image" "$mounts") ;;
    *)
      refuse "BERTDS_CONTAINER=$BERTDS_CONTAINER: allowed are apptainer, singularity, pyxis, enroot"
      ;;
  esac
}

submit() { # submit SBATCH_ARGUMENTS...: print the job id; one line and exit code 2 if Slurm refuses
  local answer more
  read -ra more <<< "${BERTDS_SBATCH:-}"
  if ! answer=$(sbatch --parsable "${more[@]}" "$@" 2>&1); then
    answer=${answer//sbatch: error: /}
    refuse "${answer//$'\n'/ }"
  fi
  tail -n 1 <<< "$answer" | cut -d';' -f1
}

# ---- the plan ------------------------------------------------------------------------------

first_host() { # "rack[1-2]n[07-10,12],other" -> rack1n07
  local list=$1 head='' inside=0 i c
  for ((i = 0; i < ${#list}; i++)); do
    c=${list:i:1}
    case $c in
      '[') inside=1 ;;
      ']') inside=0 ;;
      ',') ((inside)) || break ;;
    esac
    head+=$c
  done
  sed -E 's/\[([^],-]*)[^]]*\]/\1/g' <<< "$head"
}

smallest_count() { # the smallest number of Slurm's "64(x3),32"
  tr ',' '\n' <<< "$1" | sed 's/(.*//' | sort -n | head -n 1
}

make_plan() { # from Slurm's environment to NODES, GPUS_PER_NODE, RANKS_PER_NODE, WORLD_SIZE, ...
  local wanted from=--ntasks-per-node cpus per_task job=${SLURM_JOB_ID:-0}
  NODES=${SLURM_JOB_NUM_NODES:-${SLURM_NNODES:-}}
  [ -n "$NODES" ] || refuse "this is not a Slurm job; submit it: sbatch slurm/phase1.sh"
  whole --nodes "$NODES" 1
  whole SLURM_JOB_ID "$job"
  [ -z "${SLURM_GPUS_PER_TASK:-}" ] || refuse "--gpus-per-task=$SLURM_GPUS_PER_TASK hides the" \
    "GPUs of a node from its other ranks; ask for them with --gpus-per-node"
  GPUS_PER_NODE=${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-0}}
  GPUS_PER_NODE=${GPUS_PER_NODE##*:} # "a100:4"
  wanted=${BERTDS_RANKS_PER_NODE:-${SLURM_NTASKS_PER_NODE:-}}
  if [ -z "$wanted" ] && [ -n "${SLURM_NTASKS:-}" ]; then
    whole SLURM_NTASKS "$SLURM_NTASKS" 1
    wanted=${SLURM_TASKS_PER_NODE:-$((SLURM_NTASKS / NODES))}
    [[ $wanted != *,* ]] || refuse "the nodes have unequal numbers of tasks ($wanted);" \
      "use --ntasks-per-node instead of --ntasks"
    wanted=${wanted%%(*}
  fi
  wanted=${wanted:-1}
  whole --gpus-per-node "$GPUS_PER_NODE"
  [ -z "${BERTDS_RANKS_PER_NODE:-}" ] || from=BERTDS_RANKS_PER_NODE
  whole "$from" "$wanted" 1
  if ((GPUS_PER_NODE > 0)); then # one rank per GPU, even if the job has one task per node
    ((wanted > 1)) || [ -n "${BERTDS_RANKS_PER_NODE:-}" ] || wanted=$GPUS_PER_NODE
    ((wanted <= GPUS_PER_NODE)) ||
      refuse "$wanted tasks per node, but $GPUS_PER_NODE GPUs: at most one rank per GPU"
  fi
  RANKS_PER_NODE=$wanted
  WORLD_SIZE=$((NODES * RANKS_PER_NODE))
  cpus=${SLURM_JOB_CPUS_PER_NODE:-${SLURM_CPUS_ON_NODE:-$RANKS_PER_NODE}}
  cpus=$(smallest_count "$cpus")
  whole --cpus-per-node "$cpus"
  per_task=$((cpus / RANKS_PER_NODE))
  CPUS_PER_RANK=$((per_task > 0 ? per_task : 1))
  MASTER_ADDR=$(first_host "${SLURM_JOB_NODELIST:-${SLURM_NODELIST:-localhost}}")
  # Three ports per job: one for training and two for the preflight. They are below the range that
  # the system assigns to outgoing connections (32768 and up).
  MASTER_PORT=$((15000 + job * 3 % 15000))
  [ -z "${OMP_NUM_THREADS:-}" ] || whole OMP_NUM_THREADS "$OMP_NUM_THREADS" 1
  if [ -z "${OMP_NUM_THREADS:-}" ]; then
    OMP_NUM_THREADS=$CPUS_PER_RANK
    ((GPUS_PER_NODE == 0 || OMP_NUM_THREADS <= 8)) || OMP_NUM_THREADS=8
  fi
  export WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS
  export BERTDS_RANKS_ON_NODE=$RANKS_PER_NODE
  # Newer versions of Slurm set both for one option of sbatch, and reject an srun that differs from one.
  unset SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK
  software
  # --export=ALL: with a site's SBATCH_EXPORT=NONE, the ranks would start with an empty environment.
  # --cpus-per-task: srun does not inherit it from sbatch (Slurm 22.05 and later).
  # No --unbuffered: it makes the output a terminal, and programs would write bars and colours.
  # --kill-on-bad-exit: without it, the others wait for a dead rank until a collective times out.
  SRUN=(srun --export=ALL --nodes="$NODES" --mpi=none --kill-on-bad-exit=1)
  TRAIN_SRUN=("${SRUN[@]}" --ntasks="$WORLD_SIZE" --ntasks-per-node="$RANKS_PER_NODE"
    --cpus-per-task="$CPUS_PER_RANK" --distribution=block "${SRUN_CONTAINER[@]}")
  ((per_task > 0)) || TRAIN_SRUN+=(--overcommit)
}

free_port() { # set MASTER_PORT to the first group of three ports whose first one is free on this node
  local try
  for ((try = 0; try < 20; try++)); do
    if ! (exec 3<> "/dev/tcp/127.0.0.1/$MASTER_PORT") 2> /dev/null; then return; fi
    MASTER_PORT=$((15000 + (MASTER_PORT - 15000 + 3) % 15000))
  done
  refuse "no free port on $MASTER_ADDR near $MASTER_PORT"
}

print_plan() {
  cat << PLAN
nodes=$NODES
gpus_per_node=$GPUS_PER_NODE
ranks_per_node=$RANKS_PER_NODE
world_size=$WORLD_SIZE
cpus_per_rank=$CPUS_PER_RANK
omp_num_threads=$OMP_NUM_THREADS
master_addr=$MASTER_ADDR
master_port=$MASTER_PORT
launch=${TRAIN_SRUN[*]} bash $BERTDS_HOME/slurm/rank.sh ${PYTHON[*]} bertds/train.py
PLAN
}

plan_command() { # --print-plan; options set Slurm's variables
  local option
  for option in "$@"; do
    case $option in
      --print-plan) ;;
      --nodes=*)
        SLURM_JOB_NUM_NODES=${option#*=}
        whole --nodes "$SLURM_JOB_NUM_NODES" 1
        SLURM_JOB_NODELIST="node[0001-$(printf %04d "$SLURM_JOB_NUM_NODES")]"
        ;;
      --gpus-per-node=*) SLURM_GPUS_ON_NODE=${option#*=} ;;
      --ntasks-per-node=*) SLURM_NTASKS_PER_NODE=${option#*=} ;;
      --cpus-per-node=*) SLURM_JOB_CPUS_PER_NODE=${option#*=} ;;
      *) refuse "$option: allowed are --print-plan, --nodes=, --gpus-per-node=," \
        "--ntasks-per-node=, --cpus-per-node=" ;;
    esac
  done
  SLURM_JOB_NUM_NODES=${SLURM_JOB_NUM_NODES:-1}
  load_site
  make_plan
  print_plan
}

# ---- the job -------------------------------------------------------------------------------

# shellcheck source=slurm/job.sh
. "$BERTDS_HOME/slurm/job.sh"

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -uo pipefail
  case ${1:-} in
    --print-plan) plan_command "$@" ;;
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
    *) refuse "${1:-no option}: slurm/common.sh needs --print-plan or --help" ;;
  esac
fi
