#!/bin/bash
# Speed and memory beside textbooks and peers, the measurements of results.md: bash docs/results/speed.sh
# `make bench` measures more of them, and writes one table. The machine should do nothing else.
set -euo pipefail
PYTHON=${PYTHON:-python} DATA=$POTSTILL_DATA_DIR
WIKI=$DATA/corpus/enwiki/enwiki_AA_00-09.txt.gz

bench() {  # NAME ARGUMENTS...
  $PYTHON "tests/benchmarks/bench_$1.py" "${@:2}"
}

for precision in fp32 bf16; do
  bench step kd --rounds 4 --precision $precision
  bench step diito --rounds 4 --precision $precision
done
bench step diito --rounds 4 --precision bf16-over-fp32
bench step diito --rounds 3 --own-products  # without oneDNN
bench toolkit --rounds 4
bench toolkit --rounds 5 --checkpointing none
for peer in textbook gkd; do
  bench generative --layers 8 --batch 4 --rounds 5 --threads 1 --written 32 --cpu-time --peer $peer
done
bench embedding --threads 1 --rounds 3 --file "$WIKI"
bench tasks --threads 1 --rounds 2 --steps 6
bench step_by_step --folder "$DATA/stepbystep" --tokenizer "$DATA/tokenizers/t5" --rounds 4
bench loop --rounds 2
bench binarize "$WIKI"
