#!/bin/bash
# small: 1 training(s), each on 1 node(s) with 0 GPU(s). Written by `magpie launch`; submitted by
#   sbatch --parsable --array=0 --nodes=1 --job-name=small-prepare LAUNCH/train.sh prepare
#   sbatch --parsable --dependency=afterok:JOB --kill-on-invalid-dep=yes --array=0-0 LAUNCH/train.sh train
#   sbatch --parsable --dependency=afterany:JOB --kill-on-invalid-dep=yes --array=0 --nodes=1 --job-name=small-evaluate LAUNCH/train.sh evaluate
#SBATCH --job-name=small
#SBATCH --array=0-0
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --partition=gpu
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output=LAUNCH/logs/slurm-%A_%a.out
set -euo pipefail

runs=(good/1)
cd CWD
export PATH=BIN:$PATH
export WANDB_RUN_GROUP=small-GROUP
export CUDA_VISIBLE_DEVICES=

case "${1:-train}" in
  prepare)
    what=prepare
    arguments=(--until tokens)
    ;;
  train)
    what=${runs[$SLURM_ARRAY_TASK_ID]}
    arguments=(--only "$what")
    ;;
  evaluate)
    what=evaluate
    arguments=(--trained)
    ;;
  *)
    echo "$0: prepare, train or evaluate, not $1" >&2
    exit 2
    ;;
esac

# One log an attempt; what Slurm itself says stands in slurm-*.out.
attempt=${SLURM_RESTART_COUNT:-0}
exec >"LAUNCH/logs/${what//\//-}.$attempt.log" 2>&1
echo "$what, attempt $attempt, job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"

# Slurm tells this shell that the time is nearly over; the run is to save, and then ends by itself.
magpie run LAUNCH/recipe.yaml "${arguments[@]}" &
work=$!
signals=0
trap 'signals=$((signals + 1)); kill -USR1 "$work" || true' USR1
trap 'signals=$((signals + 1)); kill -TERM "$work" || true' TERM
while :; do
  before=$signals
  if wait "$work"; then code=0; else code=$?; fi
  # A signal ends `wait` and not the run.
  if [ "$signals" -eq "$before" ]; then break; fi
done

# 75: saved, run again. 138: ended by USR1 before there was anything to save.
if [ "$code" -eq 75 ] || [ "$code" -eq 138 ]; then
  if [ "$attempt" -lt 50 ]; then
    echo "queued again after attempt $attempt"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
  fi
  echo "not queued again: this was attempt $attempt" >&2
fi
exit "$code"
