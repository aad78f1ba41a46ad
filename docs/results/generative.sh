#!/bin/bash
# Decoders on generated arithmetic: FOLDER=runs/generative bash docs/results/generative.sh
# Arms continue one student, trained on the given completions, for as many steps. In the second setting the student and the
# arms that read given completions have 500 rows; what the teacher or the student writes is for the prompts of all rows.
# Learning rates are chosen on valid.jsonl with seed 1, the tables are of test.jsonl. A run that has ended is not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
FOLDER=${FOLDER:-runs/generative} PYTHON=${PYTHON:-python}
RATES="3e-4 1e-3 3e-3"
ROWS=$FOLDER/rows
[ -d "$ROWS" ] || $PYTHON docs/results/arithmetic.py "$ROWS"
COMMON="data=conversations data.eval_files=[$ROWS/valid.jsonl] data.tokenizer=$ROWS/tokenizer data.max_length=128
  data.cache=$FOLDER/cache data.num_proc=1 logger=csv trainer.enable_progress_bar=false"

train() {  # NAME OVERRIDES...
  [ -d "$FOLDER/$1/student" ] || $PYTHON train.py $COMMON hydra.run.dir="$FOLDER/$1" overwrite=true "${@:2}"
}

arm() {  # SETTING ARM SEED RATE
  local gkd="objective=gkd objective.on_policy=0 objective.sampling.max_new_tokens=40 teacher.model=$FOLDER/teacher/student"
  local own given="$ROWS/$1.jsonl" all="$ROWS/train.jsonl"
  case $2 in
    alone) own="objective=clm data.train_files=[$given]" ;;
    forward_kl | reverse_kl | jsd) own="$gkd objective.divergence=$2 data.train_files=[$given]" ;;
    mixed) own="$gkd objective.on_policy=0.5 data.train_files=[$given]" ;;
    on_policy) own="$gkd objective.on_policy=1 data.train_files=[$all]" ;;
    sequence) own="$gkd objective.sequence_kd=true objective.terms.ce.weight=0 objective.terms.clm.weight=1 data.train_files=[$all]" ;;
    sequence_jsd) own="$gkd objective.sequence_kd=true data.train_files=[$all]" ;;
  esac
  train "$1_$2_$3_$4" $own student.model="$FOLDER/$1_start_$3/student" seed="$3" optimizer.lr="$4" data.max_tokens=2048 \
    trainer.max_steps=200
}

table() {  # NAME ROWS STUDENTS...: exact match of greedy completions
  local models=$(printf ",$FOLDER/%s/student" "${@:3}") names=$(printf ",%s" "${@:3}")
  $PYTHON evaluate.py benchmark=generation benchmark.max_new_tokens=48 data.max_length=128 data.eval_files=["$ROWS/$2.jsonl"] \
    model=["${models:1}"] names=["${names:1}"] hydra.run.dir="$FOLDER/$1" overwrite=true
}

rate_of() {  # SETTING ARM: the rate with the best exact match on valid.jsonl
  $PYTHON - "$FOLDER/$1_choice/summary.json" "$1_$2_1_" $RATES <<'PY'
import json, sys
found = json.load(open(sys.argv[1]))
print(max(sys.argv[3:], key=lambda rate: found[f"{sys.argv[2]}{rate}/test/exact_match"]))
PY
}

train teacher objective=clm student=llama_tiny student.config.num_hidden_layers=4 data.train_files=["$ROWS/train.jsonl"] \
  data.max_tokens=4096 optimizer.lr=2e-3 trainer.max_epochs=10
students=(teacher)
for setting in train few; do
  arms="alone forward_kl reverse_kl jsd mixed on_policy sequence sequence_jsd"
  for seed in 1 2 3; do
    train "${setting}_start_$seed" objective=clm student=llama_tiny student.config.hidden_size=64 \
      student.config.intermediate_size=192 data.train_files=["$ROWS/$setting.jsonl"] data.max_tokens=2048 optimizer.lr=4e-3 \
      trainer.max_steps=800 seed="$seed"
    students+=("${setting}_start_$seed")
  done
  candidates=()
  for name in $arms; do
    for rate in $RATES; do arm "$setting" "$name" 1 "$rate"; candidates+=("${setting}_${name}_1_$rate"); done
  done
  [ -f "$FOLDER/${setting}_choice/summary.json" ] || table "${setting}_choice" valid "${candidates[@]}"
  for name in $arms; do
    rate=$(rate_of "$setting" "$name")
    for seed in 1 2 3; do arm "$setting" "$name" "$seed" "$rate"; students+=("${setting}_${name}_${seed}_$rate"); done
  done
done
table table test "${students[@]}"
