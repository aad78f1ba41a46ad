"""Write word problems with their sums as conversations, and a tokenizer: `python docs/results/arithmetic.py FOLDER`.

`train.jsonl`, `valid.jsonl` and `test.jsonl` have a `prompt`, a `completion` (the sums, one after the other) and an
`answer` (the last number of the completion); `few.jsonl` has the first 500 rows of `train.jsonl`.
"""

import json
import shutil
import sys
from pathlib import Path

from potstill.config.data import GeneratedConfig
from potstill.data.rationales.arithmetic import arithmetic_rows, arithmetic_tokenizer

PROBLEMS = GeneratedConfig(train=20_000, valid=1_000, test=2_000, people=1, events=6, largest=20)
FEW = 500

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for split in ("train", "valid", "test"):
    rows = arithmetic_rows(PROBLEMS, split)
    lines = [
        json.dumps({"prompt": prompt, "completion": f" {rationale}", "answer": answer}) + "\n"
        for prompt, rationale, answer in zip(rows.inputs, rows.rationales, rows.labels, strict=True)
    ]
    (folder / f"{split}.jsonl").write_text("".join(lines))
    if split == "train":
        (folder / "few.jsonl").write_text("".join(lines[:FEW]))
shutil.copytree(arithmetic_tokenizer(PROBLEMS, (), folder / "cache"), folder / "tokenizer", dirs_exist_ok=True)
