#!/bin/bash
# small: 4 training(s) one after the other on 2 machine(s) with 8 GPU(s) each, then the evaluation. Written by
# `magpie launch`. Start it on every machine; all see the store HERE/store:
#   MACHINE_RANK=0 MAIN_ADDRESS=<address of machine 0> bash LAUNCH/train.sh
# The same command continues where it was ended (exit code 75: it was asked to stop and has saved).
set -euo pipefail

rank=${MACHINE_RANK:-0}
main=${MAIN_ADDRESS:?the address of machine 0}
runs=(good/0 good/1 random/0 random/1)
cd CWD
export PATH=BIN:$PATH
export WANDB_RUN_GROUP=small-GROUP

if [ "$rank" -eq 0 ]; then
  magpie run LAUNCH/recipe.yaml --until tokens
fi
for run in "${runs[@]}"; do
  # The machines go from one training to the next together, so one that fails ends them all.
  magpie run LAUNCH/recipe.yaml train.machine_rank="$rank" train.main_process_ip="$main" --only "$run"
done
if [ "$rank" -eq 0 ]; then
  magpie run LAUNCH/recipe.yaml --trained
fi
