#!/usr/bin/env bash
# Python inside an Enroot image: enroot.sh IMAGE MOUNTS ARGUMENTS OF PYTHON...
#
# Enroot starts with an empty environment in its root folder. So the variables of the job and the
# working folder are passed on. MOUNTS are FROM:TO[:more fields of fstab], separated by commas.
set -u

image=$1 mounts=$2 options=()
shift 2
IFS=, read -ra list <<< "$mounts"
for one in "${list[@]}"; do
  [[ $one == *:*:* ]] || one=$one:none:x-create=auto,rbind
  options+=(--mount "$one")
done
while read -r name; do
  case $name in
    RANK | LOCAL_* | WORLD_SIZE | MASTER_* | SLURM* | BERTDS_* | OMP_* | PYTHON* | TMPDIR | \
      CUDA_* | NVIDIA_* | NCCL_* | GLOO_* | UCX_* | FI_* | TORCH* | TRITON_* | DS_* | HF_* | \
      WANDB_*) options+=(--env "$name") ;;
  esac
done < <(compgen -e)
exec enroot start "${options[@]}" "$image" env --chdir="$PWD" python "$@"
