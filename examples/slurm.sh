#!/bin/bash
# The whole pipeline on several nodes, with the options of `nanochat run`:
#
#   sbatch --nodes 2 slurm.sh --preset d20
#   sbatch --nodes 2 slurm.sh --preset d12 --set data.dataset=mine
#
# Slurm warns with SIGUSR1 five minutes before the time limit. Training then finishes its step, saves and ends with
# exit code 75, an evaluation with 130, and the job queues itself again: the same command goes on where it stopped.
#SBATCH --job-name=nanochat
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=nanochat-%j.log

export NANOCHAT_HOME=${NANOCHAT_HOME:?a folder that all nodes share}
[ $# -gt 0 ] || set -- --preset d20
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))  # two jobs may share a node

nanochat tokenize train "$@" || exit

# --kill-on-bad-exit: a node whose launcher was killed ends the others. The quotes are right: each node fills in its own.
srun --kill-on-bad-exit=1 bash -c 'exec nanochat run "$@" --gpus all --max-restarts 3 \
    --nodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --rdzv-endpoint "$0"' "$first:$port" "$@"
code=$?

if [ "$code" -eq 75 ] || [ "$code" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
