#!/bin/bash
# A recipe's training stage as a Slurm job; submitted again, it resumes from the last checkpoint:
#
#     export CORPUS=/data/LibriSpeech OUT=/shared/exp/ls_base
#     TO=check bash recipes/librispeech/run.sh                                              # once, before
#     STAGE=pretrain sbatch --nodes=8 --gpus-per-node=8 recipes/slurm.sh librispeech [--set SECTION.KEY=VALUE ...]
#
# STAGE is pretrain or finetune; the other settings are the recipe's. If a process dies, all start again from the last
# checkpoint, RESTARTS times (3). Five minutes before its time is over the training saves, and the job queues again.
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

: "${1:?the name of a recipe}" "${OUT:?a folder that all machines have}" "${STAGE:?pretrain or finetune}"
export FROM=$STAGE TO=$STAGE NODES=$SLURM_NNODES GPUS=${SLURM_GPUS_ON_NODE:-8} RESTARTS=${RESTARTS:-3}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # head would break the pipe
export HEAD

# Slurm runs a copy of this file, so that the repository is where the job was submitted.
srun --kill-on-bad-exit=1 bash "recipes/$1/run.sh" "${@:2}" &
step=$!
was_stopped=false status=0
trap 'was_stopped=true; kill -TERM "$step"' TERM # which srun passes on
wait "$step" || status=$?
if $was_stopped; then # the wait was interrupted
    status=0
    wait "$step" || status=$?
    ((status == 0)) || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
