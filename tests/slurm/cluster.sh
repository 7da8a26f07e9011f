#!/usr/bin/env bash
# A throw-away Slurm cluster. Its nodes are namespaces of this machine: each has its own host name,
# its own network on a bridge that leads nowhere else, its own processes and its own mounts.
#
#   cluster.sh start DIR | stop DIR        DIR/pid holds everything: kill -9 of it ends the cluster
#   cluster.sh run DIR COMMAND...          on the login node (the controller's network)
#   cluster.sh on DIR nodeN COMMAND...     inside a node
#   cluster.sh node-kill DIR nodeN         power cut: slurmd, its steps and their tasks at once
#   cluster.sh node-start DIR nodeN
#   cluster.sh link DIR nodeN up|down      network cut
#
# From the environment: NODES, CPUS and MEM of each, GPU_NODES (how many of the last nodes have
# GPUS fake GPUs each, in partition `gpu`; the others are in `main` and `low`), TTL in seconds.
# Needs root and Debian's slurmctld, slurmd, slurm-client, iproute2.
set -euo pipefail

self=$(realpath "$0")
verb=${1:?what to do}
D=$(realpath -m "${2:?the folder of the cluster}")
shift 2
NODES=${NODES:-4} GPU_NODES=${GPU_NODES:-1} GPUS=${GPUS:-2}
CPUS=${CPUS:-8} MEM=${MEM:-16000} TTL=${TTL:-5400}
NET=198.51.100 # TEST-NET-2 of RFC 5737: lives only inside the namespaces
export SLURM_CONF=$D/slurm.conf

write_configuration() {
  local first_gpu=$((NODES - GPU_NODES + 1)) i
  cat > "$D/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=localhost($NET.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
EnforcePartLimits=ALL
SlurmctldTimeout=10
SlurmdTimeout=5
MessageTimeout=10
BatchStartTimeout=10
KillWait=15
UnkillableStepTimeout=40
InactiveLimit=0
MinJobAge=86400
FirstJobId=$((1000 + RANDOM))
GresTypes=gpu
CONF
  for ((i = 1; i <= NODES; i++)); do
    printf 'NodeName=node%d NodeHostname=node%d NodeAddr=%s.%d CPUs=%d RealMemory=%d State=UNKNOWN' \
      "$i" "$i" "$NET" "$i" "$CPUS" "$MEM"
    ((i < first_gpu)) || printf ' Gres=gpu:%d' "$GPUS"
    echo
  done >> "$D/slurm.conf"
  local plain="node[1-$((first_gpu - 1))]"
  cat >> "$D/slurm.conf" <<CONF
PartitionName=main Nodes=$plain Default=YES MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=$plain MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
CONF
  printf 'AutoDetect=off\n' > "$D/gres.conf"
  if ((GPU_NODES > 0)); then
    echo "PartitionName=gpu Nodes=node[$first_gpu-$NODES] MaxTime=INFINITE DefaultTime=60 State=UP" \
      >> "$D/slurm.conf"
    echo "NodeName=node[$first_gpu-$NODES] Name=gpu File=$D/dev/gpu[0-$((GPUS - 1))]" >> "$D/gres.conf"
    # gres wants device files: /dev/null by other names
    for ((i = 0; i < GPUS; i++)); do mknod "$D/dev/gpu$i" c 1 3; done
  fi
  {
    echo "127.0.0.1 localhost"
    for ((i = 1; i <= NODES; i++)); do echo "$NET.$i node$i"; done
  } > "$D/hosts"
  : > "$D/resolv.conf"
}

start_node() { # inside the cluster's namespaces
  local name=$1 number=${1#node} pid
  mkdir -p "$D/spool/$name"
  # shellcheck disable=SC2016 # expanded by the inner shell
  setsid unshare --net --uts --ipc --mount --pid --fork --kill-child=SIGKILL --mount-proc bash -c '
    D=$1 name=$2
    hostname "$name"
    mount --bind "$D/hosts" /etc/hosts
    mount --bind "$D/resolv.conf" /etc/resolv.conf
    ip link set lo up
    until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
    ip addr add "$3/24" dev eth0
    ip link set eth0 up
    slurmd -D -N "$name" & wait $!
    sleep infinity' _ "$D" "$name" "$NET.$number" \
    < /dev/null >> "$D/log/$name.out" 2>&1 &
  pid=$!
  echo "$pid" > "$D/$name.pid"
  ip link del "v$number" 2> /dev/null || true
  until [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.02; done
  ip link add "v$number" type veth peer name eth0 netns "$pid"
  ip link set "v$number" master br0 up
}

inside() { nsenter --target "$(cat "$D/init")" --net --mount --pid -- "$@"; }

case $verb in
  start)
    "$self" stop "$D"
    trap '[ $? = 0 ] || "$self" stop "$D"' EXIT
    [ ! -e "$D/slurm.conf" ] || rm -rf "$D"
    mkdir -p "$D"/{state,spool,log,dev}
    write_configuration
    setsid unshare --net --mount --pid --fork --kill-child=SIGKILL --mount-proc \
      "$self" _init "$D" < /dev/null > "$D/log/init.out" 2>&1 &
    echo $! > "$D/pid"
    for _ in $(seq 200); do
      if [ -e "$D/ready" ]; then
        pid=$(cat "$D/pid")
        read -r child _ < "/proc/$pid/task/$pid/children" || true
        echo "$child" > "$D/init"
        idle=$("$self" run "$D" sinfo -h -N -t idle -o %N 2> /dev/null | sort -u | wc -l)
        if [ "$idle" = "$NODES" ]; then
          echo "export SLURM_CONF=$D/slurm.conf"
          exit 0
        fi
      fi
      sleep 0.1
    done
    echo "the cluster did not come up" >&2
    head -n 40 "$D"/log/* >&2
    exit 1
    ;;
  _init) # pid 1 of the cluster: when it ends, all ends
    ip link set lo up
    ip link add br0 type bridge
    ip addr add "$NET.254/24" dev br0
    ip link set br0 up
    slurmctld -D -c -i >> "$D/log/slurmctld.out" 2>&1 &
    for ((i = 1; i <= NODES; i++)); do start_node "node$i"; done
    : > "$D/ready"
    sleep "$TTL" &
    wait $! || true
    ;;
  stop)
    pid=$(cat "$D/pid" 2> /dev/null || true)
    if [ -n "$pid" ] && grep -qz "^$D\$" "/proc/$pid/cmdline" 2> /dev/null; then kill -KILL "$pid"; fi
    rm -f "$D/pid" "$D/ready"
    ;;
  run) exec nsenter --target "$(cat "$D/init")" --net -- "$@" ;;
  on)
    node=$1
    shift
    # The node's pid file holds `unshare`; its only child is the node's first process. Pids are
    # those of the cluster's namespace, so both are looked up from inside it.
    # shellcheck disable=SC2016
    inside bash -c 'pid=$(cat "$1"); read -r child _ < "/proc/$pid/task/$pid/children"; shift
      exec nsenter --target "$child" --all -- "$@"' _ "$D/$node.pid" "$@"
    ;;
  node-kill) inside kill -KILL "$(cat "$D/$1.pid")" ;;
  node-start) inside "$self" _node "$D" "$1" ;;
  _node) start_node "$1" ;;
  link) inside ip link set "v${1#node}" "$2" ;;
  *)
    echo "cluster.sh: no verb $verb" >&2
    exit 2
    ;;
esac
