#!/usr/bin/env bash
# One Slurm task: sets the rank of the command, and stores its exit code for the batch script. The
# exit code of srun is not enough, because it is the highest of all. If one rank fails with 2 and the
# others are ended, their 143 hides the 2.
set -u

# A stop signal that arrives while Python still imports must not kill it. The trainer installs its
# handler later, and the signal is repeated. Until then SIGTERM still ends Python: nothing is lost yet.
trap '' USR1
trap ':' TERM INT

export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
export LOCAL_SIZE=$BERTDS_RANKS_ON_NODE LOCAL_WORLD_SIZE=$BERTDS_RANKS_ON_NODE

"$@"
code=$?

case $code in
  0 | 75 | 130 | 143) [ "$RANK" != 0 ] || echo "$code $(hostname)" > "$BERTDS_EXITS/rank_0" ;;
  *) echo "$code $(hostname)" > "$BERTDS_EXITS/rank_$RANK" ;;
esac
# A stop with everything saved is not a failure: srun must not end the other ranks for it.
[ "$code" != 75 ] || code=0
exit "$code"
