#!/bin/bash
# small: 4 training(s) one after the other on 1 machine(s) with all its GPU(s) each, then the evaluation. Written by
# `magpie launch`. Start it by
#   bash LAUNCH/train.sh
# The same command continues where it was ended (exit code 75: it was asked to stop and has saved).
set -euo pipefail

rank=${MACHINE_RANK:-0}
runs=(good/0 good/1 random/0 random/1)
cd CWD
export PATH=BIN:$PATH
export WANDB_RUN_GROUP=small-GROUP

if [ "$rank" -eq 0 ]; then
  magpie run LAUNCH/recipe.yaml --until tokens
fi
for run in "${runs[@]}"; do
  # A training that fails is left out of the comparison, which says so.
  code=0
  magpie run LAUNCH/recipe.yaml --only "$run" || code=$?
  if [ "$code" -eq 75 ]; then exit "$code"; fi
  if [ "$code" -ne 0 ]; then echo "$run failed with exit code $code" >&2; fi
done
if [ "$rank" -eq 0 ]; then
  magpie run LAUNCH/recipe.yaml --trained
fi
