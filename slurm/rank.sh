#!/usr/bin/env bash
# One Slurm task: gives the command its rank, and leaves its exit code where the batch
# script finds it. (srun's own exit code is the highest of all: 143 of the ranks that were ended
# because one had failed hides that one's 2.)
set -u

# A stop notice that comes while Python still imports must not kill it; the trainer installs its
# handler later, and the notice is repeated. SIGTERM stays deadly until then: nothing is lost yet.
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
# Stopped early with everything saved is no bad exit: srun shall not end the others for it.
[ "$code" != 75 ] || code=0
exit "$code"
