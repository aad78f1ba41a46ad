#!/bin/bash
# Labels alone and labels with rationales, on generated word problems, SVAMP and CommonsenseQA:
# FOLDER=runs/step_by_step bash docs/results/step_by_step.sh
# The students are T5 from scratch. The tables are of the test parts. Answers of word problems are short: 4 tokens are generated
# instead of the recipe's 32 (the one run that was repeated with 32 has the same accuracy). A run that has ended is not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
FOLDER=${FOLDER:-runs/step_by_step} PYTHON=${PYTHON:-python}
SCRATCH="objective=step_by_step student=t5_tiny data.folder=$POTSTILL_DATA_DIR/stepbystep
  data.tokenizer=$POTSTILL_DATA_DIR/tokenizers/t5 strategy=cpu_bf16 data.batch_size=32 data.eval_batch_size=128 optimizer.lr=1e-3
  schedule.warmup_share=0.1 trainer.gradient_clip_val=1.0 trainer.max_epochs=null trainer.val_check_interval=200
  checkpoint.every_n_steps=null"

train() {  # NAME OVERRIDES...
  [ -f "$FOLDER/$1/summary.json" ] || $PYTHON train.py logger=csv trainer.enable_progress_bar=false hydra.run.dir="$FOLDER/$1" \
    overwrite=true "${@:2}"
}

for data in arithmetic svamp cqa; do
  case $data in
    arithmetic) own="experiment=arithmetic data.generation_max_length=4" ;;
    svamp) own="$SCRATCH data=svamp trainer.max_steps=800" ;;
    cqa) own="$SCRATCH data=cqa trainer.max_steps=600 data.restricted_decoding=true" ;;
  esac
  for mode in standard task_prefix; do
    for share in 0.25 0.5 1.0; do
      for seed in 1 2 3; do
        train "$data/${mode}_${share}_$seed" $own objective.mode=$mode data.share=$share seed=$seed
      done
    done
  done
  # share.csv, and the picture of the accuracy over the share
  $PYTHON evaluate.py sweep.folder="$FOLDER/$data" hydra.run.dir="$FOLDER/table_$data" overwrite=true
done
