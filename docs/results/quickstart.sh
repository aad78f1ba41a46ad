#!/bin/bash
# `make quickstart` with three seeds, and `alone` for as many seconds as `distilled`:
# FOLDER=runs bash docs/results/quickstart.sh
# The recipe does not repeat a stage that has ended, and a run that has ended is not repeated.
set -euo pipefail
FOLDER=${FOLDER:-runs} PYTHON=${PYTHON:-python}
TEACHER=$FOLDER/quickstart/teacher/student
KD="objective=kd teacher.model=$TEACHER objective.temperature=1 objective.hard_weight=0 objective.terms.ce.weight=1
  objective.terms.cos.weight=0"

train() {  # NAME OVERRIDES...
  [ -f "$FOLDER/$1/summary.json" ] || $PYTHON train.py experiment=quickstart hydra.run.dir="$FOLDER/$1" "${@:2}"
}

train quickstart
for seed in 1 2; do
  train quickstart_alone_$seed stages=[] data.tokenizer="$TEACHER" seed=$seed overwrite=true
  train quickstart_distilled_$seed stages=[] $KD seed=$seed overwrite=true
done
train quickstart_alone_430 stages=[] data.tokenizer="$TEACHER" seed=42 trainer.max_steps=430 overwrite=true
