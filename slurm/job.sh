#!/usr/bin/env bash
# Inside a job: the preflight, the start of the ranks, and the decision after they ended.
# Sourced by common.sh.
#
# The state that the scripts keep between restarts is in the run folder, because a job id does not
# identify a run:
#   RUN/slurm/job              the id of the job that trains in it
#   RUN/slurm/history          one line per event
#   RUN/slurm/crashes          "COUNT STEP": crashes in a row since that checkpoint
#   RUN/slurm/preflight_nodes  the nodes that passed the last full preflight

STOP='' STEP='' DONE_BEFORE=''
# The name of this job for scontrol. The job id of an array's last element is the id of the array,
# which scontrol would apply to all elements.
SELF=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
SELF=${SELF:-${SLURM_JOB_ID:-}}

# ---- Slurm's view --------------------------------------------------------------------------

job_field() { # job_field JOB NAME: one field of `scontrol show job`, or GONE, or UNKNOWN
  local text
  text=$(scontrol show job -o "$1" 2>&1) || true
  case $text in
    *JobState=*) sed -n "s/.* $2=\([^ ]*\).*/\1/p" <<< "$text" ;;
    *"Invalid job id"*) echo GONE ;;
    *) echo UNKNOWN ;; # the controller does not answer; that does not mean that the job has ended
  esac
}

is_alive() { # is_alive JOB: whether the job, or an element of it, runs or will run again
  local state
  while read -r state; do
    case $state in
      GONE | BOOT_FAIL | CANCELLED* | COMPLETED | DEADLINE | FAILED | NODE_FAIL | OUT_OF_MEMORY | \
        PREEMPTED | TIMEOUT | REVOKED) ;;
      *) return 0 ;;
    esac
  done <<< "$(job_field "$1" JobState)"
  return 1
}

note() { # add one line to the run's history
  printf '%s job=%s restart=%s nodes=%s %s\n' "$(date +%Y-%m-%dT%H:%M:%S%z)" "$SLURM_JOB_ID" \
    "${SLURM_RESTART_COUNT:-0}" "$SLURM_JOB_NODELIST" "$*" >> "$RUN/slurm/history"
}

leave_it_to_slurm() { # end this script unless Slurm reports the job as running
  # A cancelled job must not be requeued, so only a running job requeues itself. After a preemption,
  # a node loss or `scontrol requeue`, Slurm has requeued the job already. If the job is running again,
  # this script is left over from before the requeue, on a node that Slurm had lost.
  local state try
  for ((try = 0; try < 30; try++)); do
    state=$(job_field "$SELF" JobState)
    if [ "$state" = RUNNING ]; then
      case $(job_field "$SELF" Restarts) in
        "${SLURM_RESTART_COUNT:-0}" | '' | UNKNOWN) return 0 ;;
      esac
      state="RUNNING again"
      break
    fi
    [ "$state" = UNKNOWN ] || break
    sleep 2 # the controller does not answer; it may be restarting
  done
  [ -z "${RUN:-}" ] || note "ended by Slurm ($state)"
  exit 75
}

requeue() { # requeue [NAME=VALUE for scontrol update]: requeue the job and end this script
  leave_it_to_slurm
  trap '' TERM # Slurm ends this script with the job; its messages come first
  local change=${1:-} try=0 answer=''
  until scontrol requeue "$SELF"; do
    if ((++try >= 3)); then
      say "this job cannot be requeued; submit the same command again"
      exit 75
    fi
    sleep 3
  done
  [ -n "$change" ] || exit 0
  for ((try = 0; try < 50; try++)); do # only a pending job can be changed: wait for that state
    answer=$(scontrol update JobId="$SELF" "$change" 2>&1) && exit 0
    [[ $answer != *"node configuration"* ]] || break
    sleep 0.2
  done
  scontrol hold "$SELF"
  say "the job is held because Slurm refused $change (${answer//$'\n'/ });" \
    "release it with: scontrol release $SELF"
  exit 0
}

on_signal() { # before a time limit or preemption: ask the ranks to save
  STOP=$1
  say "got SIG$1: asking the ranks to save and stop"
  [ -z "$STEP" ] || ask_to_stop
}

ask_to_stop() { # repeatedly: a signal that arrives while Python imports is ignored
  (while kill -"$STOP_SIGNAL" "$STEP" 2> /dev/null; do sleep 3; done) &
}

run_step() { # run_step COMMAND...: run it while traps still work; return its exit code
  local code
  "$@" &
  STEP=$!
  [ -z "$STOP" ] || ask_to_stop
  while :; do
    wait "$STEP"
    code=$?
    kill -0 "$STEP" 2> /dev/null || break # else: a trap interrupted the wait
  done
  STEP=''
  return "$code"
}

argument() { # argument KEY ARGUMENTS...: print the value of the last KEY=value
  local key=$1 one found=''
  shift
  for one in "$@"; do [[ $one != "$key="* ]] || found=${one#*=}; done
  echo "$found"
}

clear_dead_lock() { # remove locks of jobs that have ended, and of this job before a requeue
  local owner file
  for file in "$1/.lock" "$1"/.tasks/member-*.json; do
    # Tasks that share a lock are its members. The lock is removed after the last of them.
    if [ ! -e "$file" ] || grep -q '"session"' "$file" && [ "$file" = "$1/.lock" ]; then continue; fi
    owner=$(sed -n 's/.*"job": *"\([0-9][0-9]*\)".*/\1/p' "$file" 2> /dev/null)
    is_number "$owner" || continue
    if [ "$owner" = "$SLURM_JOB_ID" ] || ! is_alive "$owner"; then rm -f "$file"; fi
  done
}

# ---- crashes -------------------------------------------------------------------------------

newest_step() { # print the name of the newest checkpoint, or none
  local name=''
  read -r name 2> /dev/null < "$RUN/checkpoints/latest" || true
  if [[ $name =~ ^step_[0-9]{8,15}$ ]]; then echo "$name"; else echo none; fi
}

crashed() { # crashed REASON [NAME=VALUE | here]: try again up to the limit; returns only with here
  local limit=${BERTDS_MAX_CRASHES:-3} count=0 step='' now
  leave_it_to_slurm
  now=$(newest_step)
  read -r count step 2> /dev/null < "$RUN/slurm/crashes" || true
  [ "$step" = "$now" ] || count=0 # a new checkpoint since then: the run made progress
  count=$(number_or 0 "$count")
  count=$((count + 1))
  echo "$count $now" > "$RUN/slurm/crashes"
  note "crash $count: $1"
  if ((count > limit)); then
    say "error: $1; crash $count in a row without a new checkpoint: giving up"
    exit 1
  fi
  export BERTDS_LOST=$1
  if [ "${2:-}" = here ]; then
    if ((count <= ${BERTDS_RESTARTS:-0})); then
      say "$1; starting again in this job, from ${now/none/the beginning}"
      return 0
    fi
    set -- "$1"
  fi
  say "$1; crash $count of at most $limit in a row without a new checkpoint: trying again"
  requeue "${2:-}"
}

# ---- preflight -----------------------------------------------------------------------------

examine() { # examine LEVEL DATA BAD_NODES_FILE: run the doctor on all nodes; return its exit code
  local level=$1 data=$2 bad=$3 report=$3.report judge=("${PYTHON[@]}") code
  local seconds=${BERTDS_PREFLIGHT_SECONDS:-45}
  BERTDS_NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)
  export BERTDS_NODES
  timeout -k 5 "$seconds" "${SRUN[@]}" --kill-on-bad-exit=0 --ntasks="$NODES" --ntasks-per-node=1 \
    --cpus-per-task="$((CPUS_PER_RANK * RANKS_PER_NODE))" "${SRUN_CONTAINER[@]}" \
    "${PYTHON[@]}" -m bertds.cli doctor --cluster --level "$level" --run "$RUN" \
    ${data:+--data "$data"} --gpus "$GPUS_PER_NODE" --seconds "$((seconds - 10))" > "$report"
  [ ${#SRUN_CONTAINER[@]} = 0 ] ||
    judge=(srun --nodes=1 --ntasks=1 --nodelist="$MASTER_ADDR" "${SRUN_CONTAINER[@]}" python)
  "${judge[@]}" -m bertds.cli doctor --judge "$report" --nodes "$BERTDS_NODES" --level "$level" \
    --min-free-gb "${BERTDS_MIN_FREE_GB:-5}" --bad-nodes "$bad" \
    --partition "${SLURM_JOB_PARTITION:-}"
  code=$?
  rm -f "$report"
  return "$code"
}

doctor() { # run the preflight alone
  start_job
  RUN=$BERTDS_RUNS
  mkdir -p "$RUN"
  local bad=$RUN/.bad_nodes.$SLURM_JOB_ID code
  examine full "${BERTDS_DATA:-}" "$bad"
  code=$?
  rm -f "$bad"
  exit "$code"
}

preflight() { # preflight DATA: find bad nodes before training starts on them
  local data=$1 mode=${BERTDS_PREFLIGHT:-auto} bad code hosts already
  case $mode in
    off) return 0 ;;
    auto)
      mode=full
      # The same nodes as last time without a crash: check only what may have changed.
      if [ "$(cat "$RUN/slurm/preflight_nodes" 2> /dev/null)" = "$SLURM_JOB_NODELIST" ] &&
        [ ! -e "$RUN/slurm/crashes" ]; then mode=quick; fi
      ;;
    full | quick) ;;
    *) refuse "BERTDS_PREFLIGHT=$mode: allowed are auto, full, quick, off" ;;
  esac
  bad=$RUN/slurm/bad_nodes.$SLURM_JOB_ID
  examine "$mode" "$data" "$bad"
  code=$?
  hosts=$(plain "$(cat "$bad" 2> /dev/null)")
  rm -f "$bad"
  case $code in
    0) [ "$mode" = quick ] || echo "$SLURM_JOB_NODELIST" > "$RUN/slurm/preflight_nodes" ;;
    2)
      note "preflight: bad input"
      exit 2
      ;;
    *)
      already=$(job_field "$SELF" ExcNodeList)
      [[ $already != "(null)" && $already != UNKNOWN && $already != GONE ]] || already=''
      crashed "preflight failed on ${hosts:-an unknown node}" \
        "${hosts:+ExcNodeList=${already:+$already,}$hosts}"
      ;;
  esac
}

# ---- training ------------------------------------------------------------------------------

start_job() {
  [ -n "${SLURM_JOB_ID:-}" ] || refuse "this is not a Slurm job; submit it: sbatch $0"
  STOP_SIGNAL=USR1
  trap 'on_signal USR1' USR1
  trap 'on_signal TERM' TERM
  load_site
  whole BERTDS_PREFLIGHT_SECONDS "${BERTDS_PREFLIGHT_SECONDS:-45}" 20
  whole BERTDS_MAX_CRASHES "${BERTDS_MAX_CRASHES:-3}"
  whole BERTDS_RESTARTS "${BERTDS_RESTARTS:-0}"
  enter_software
  make_plan
  if [ -n "${SBATCH_PARTITION:-}" ] && [ "$SBATCH_PARTITION" != "${SLURM_JOB_PARTITION:-}" ]; then
    say "note: this job is in partition ${SLURM_JOB_PARTITION:-?}, but slurm/site.env names" \
      "$SBATCH_PARTITION; submit with slurm/submit.sh to use the site's settings"
  fi
}

open_run() { # create RUN/slurm; refuse a folder of other files, and a run that another job uses
  local owner file
  # The trainer decides what a run folder is (bertds/training/foreign_files.py). This check is coarser,
  # and made before anything is created there.
  if [ ! -e "$RUN/environment.json" ] && [ ! -e "$RUN/checkpoints" ] && [ ! -e "$RUN/slurm/job" ]; then
    file=$(find -H "$RUN" -mindepth 1 -name '.*' -prune -o ! -type d ! -name '*.log' ! -name '*.out' \
      ! -name '*.err' ! -name log.txt ! -name STOP ! -path "$RUN/slurm/*" -print -quit 2> /dev/null)
    [ -z "$file" ] || refuse "run.dir=$RUN: this folder is not a run and contains other files" \
      "(${file#"$RUN"/}); set run.dir to a new or an empty folder"
  fi
  mkdir -p "$RUN/slurm" 2> /dev/null
  [ -w "$RUN/slurm" ] || refuse "$RUN: cannot be written"
  # In another user's run folder, links could redirect writes to other files.
  for file in "$RUN/slurm" "$RUN"/slurm/*; do
    [ ! -L "$file" ] || refuse "$file: is a link; remove it, because nothing is written through links"
  done
  owner=$(cat "$RUN/slurm/job" 2> /dev/null)
  if is_number "$owner" && [ "$owner" != "$SLURM_JOB_ID" ] && is_alive "$owner"; then
    refuse "$RUN: in use by Slurm job $owner; wait for it, cancel it, or choose another run.dir"
  fi
  echo "$SLURM_JOB_ID" > "$RUN/slurm/job"
  clear_dead_lock "$RUN"
}

need_phase1() { # phase 2 starts only after the last step of phase 1
  local first=$1 job
  [ ! -e "$first/DONE" ] || return 0
  job=$(cat "$first/slurm/job" 2> /dev/null)
  if is_number "$job" && is_alive "$job"; then
    say "$first is not done yet: waiting for Slurm job $job"
    requeue "Dependency=afterok:$job"
  fi
  refuse "$first/DONE is missing: phase 1 is not finished; run slurm/phase1.sh first," \
    "or set init.from=PATH"
}

find_recipe() { # print the path as given if it exists, else the one in the clone
  if [ -e "$1" ] || [ ! -e "$BERTDS_HOME/$1" ]; then echo "$1"; else echo "$BERTDS_HOME/$1"; fi
}

phase_files() { # phase_files NUMBER: set RECIPE, and JSON (empty: the one that the recipe names)
  local recipe=BERTDS_PHASE$1 json=BERTDS_PHASE${1}_JSON
  RECIPE=$(find_recipe "${!recipe:-bertds/recipes/large_phase$1.yaml}")
  JSON=${!json:+$(find_recipe "${!json}")}
}

done_file() { # identify the DONE file of the run folder; print nothing without one
  stat -c '%i %y' "$RUN/DONE" 2> /dev/null
}

train_phase() { # train_phase NUMBER ARGUMENTS OF THE TRAINER...
  local phase=$1 data first settings=() command
  shift
  start_job
  phase_files "$phase"
  RUN=$(argument run.dir "$@")
  [ -n "$RUN" ] || { RUN=$BERTDS_RUNS/phase$phase && settings+=("run.dir=$RUN"); }
  data=$(argument data.path "$@")
  [ -n "$data" ] || [ -z "${BERTDS_DATA:-}" ] ||
    { data=$BERTDS_DATA && settings+=("data.path=$data"); }
  if [ "$phase" = 2 ] && [ -z "$(argument init.from "$@")" ]; then
    first=$BERTDS_RUNS/phase1
    need_phase1 "$first"
    settings+=("init.from=$first")
  fi
  open_run
  if [ -e "$RUN/slurm/crashes" ]; then # this start follows a crash: pass its reason to the run's records
    BERTDS_LOST=$(plain "$(sed -n 's/.* crash [0-9]*: //p' "$RUN/slurm/history" | tail -n 1)")
    export BERTDS_LOST
  fi
  command=(--config "$RECIPE")
  [ -z "$JSON" ] || command+=(--deepspeed_config "$JSON")
  [ ${#settings[@]} = 0 ] || command+=(--set "${settings[@]}")
  BERTDS_EXITS=$RUN/slurm/exits.$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
  export BERTDS_EXITS
  while :; do
    preflight "$data"
    [ -z "$STOP" ] || requeue
    rm -rf "$BERTDS_EXITS"
    mkdir -p "$BERTDS_EXITS"
    DONE_BEFORE=$(done_file)
    free_port
    note "start: $WORLD_SIZE ranks"
    say "starting $WORLD_SIZE ranks on $NODES nodes; they meet at $MASTER_ADDR:$MASTER_PORT"
    run_step "${TRAIN_SRUN[@]}" bash "$BERTDS_HOME/slurm/rank.sh" "${PYTHON[@]}" \
      "$BERTDS_HOME/bertds/train.py" "${command[@]}" "$@"
    decide $? # returns only to start the ranks again in this job
  done
}

decide() { # decide SRUN_EXIT_CODE: done, stopped, bad input or crashed; returns to start again
  local code=$1 main='' bad='' crash='' early='' file one host
  for file in "$BERTDS_EXITS"/rank_*; do
    [ -e "$file" ] || continue
    read -r one host < "$file"
    one=$(number_or 1 "$one") # a torn file counts as a failure
    host=$(plain "$host")
    case $one in
      0 | 75) ;;
      130 | 143) early="rank ${file##*_} on $host was ended by a signal before it could save" ;;
      2) bad=$host ;;
      # A rank killed by a signal (128 or more) died first; the others failed as a result.
      *) ((one < 128)) && [ -n "$crash" ] ||
        crash="rank ${file##*_} on $host ended with exit code $one" ;;
    esac
    [ "${file##*_}" != 0 ] || main=$one
  done
  rm -rf "$BERTDS_EXITS"
  # A DONE that the trainer wrote counts, even if a rank failed later. A DONE from before this start
  # counts only if rank 0 ended with 0: the trainer refuses other settings, and continues with a
  # longer schedule.
  if [ -e "$RUN/DONE" ] && { [ "$main" = 0 ] || [ "$(done_file)" != "$DONE_BEFORE" ]; }; then
    note "done"
    rm -f "$RUN/slurm/crashes"
    exit 0
  fi
  leave_it_to_slurm
  if [ -n "$bad" ]; then
    note "bad input"
    exit 2
  fi
  if [ -n "$crash" ]; then
    crashed "$crash" here
    return 0
  fi
  if [ "$main" = 0 ]; then
    say "error: the trainer reported success, but $RUN/DONE is missing"
    exit 1
  fi
  # A requested stop, or a saved run, is no crash. Anything else that ends the ranks at start-up counts
  # as one, so that it is not repeated without limit.
  if [ -z "$STOP" ] && [ "$main" != 75 ] && [ "$code" != 0 ]; then
    crashed "${early:-srun ended with exit code $code before the ranks did}"
  fi
  rm -f "$RUN/slurm/crashes"
  if [ -e "$RUN/STOP" ]; then
    note "stopped by $RUN/STOP"
    say "stopped by the file $RUN/STOP; the job is held. Remove the file, then run:" \
      "scontrol release $SELF"
    trap '' TERM
    scontrol requeuehold "$SELF" || exit 75
    exit 0
  fi
  note "stopped, requeued"
  say "stopped at $(newest_step); everything is saved and the job is requeued"
  requeue
}

# ---- commands on one node --------------------------------------------------------------------

one_node() { # one_node ARGUMENTS OF bertds...: prep, export, evaluate; each resumes automatically
  local code out='' previous='' one
  start_job
  STOP_SIGNAL=TERM # these commands do not save on request; they resume from their complete parts
  for one in "$@"; do
    [ "$previous" != --out ] || out=$one
    previous=$one
  done
  [ -z "$out" ] || clear_dead_lock "$out"
  run_step srun --export=ALL --nodes=1 --ntasks=1 --mpi=none \
    --cpus-per-task="$((CPUS_PER_RANK * RANKS_PER_NODE))" "${SRUN_CONTAINER[@]}" \
    "${PYTHON[@]}" -m bertds.cli "$@"
  code=$?
  if [ $code = 0 ] || [ $code = 2 ]; then exit $code; fi
  leave_it_to_slurm
  if [ -n "$STOP" ] || [ $code = 75 ]; then requeue; fi
  if ((${SLURM_RESTART_COUNT:-0} >= ${BERTDS_MAX_CRASHES:-3})); then
    say "error: bertds $1 ended with exit code $code: giving up"
    exit 1
  fi
  say "bertds $1 ended with exit code $code: trying again"
  requeue
}
