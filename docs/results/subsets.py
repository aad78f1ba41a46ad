"""Small training sets of SST-2, MRPC and a part of QNLI of RTE's size.

Run `python docs/results/subsets.py <data folder> <folder>`. Every tenth row of a training set is held out: `choice` has
the first 500 of them, `train` all other rows, and `<percent>_<seed>` so many percent of the whole set, drawn from
`train`. With one seed a smaller set is part of a larger one.
"""

import gzip
import json
import random
import sys
from pathlib import Path

PERCENT = (1, 5, 10)
SEEDS = (1, 2, 3)
RTE_ROWS = 2490


def read(glue: Path, task: str) -> tuple[list[str], list[str]]:
    """The header, if there is one, and the lines of a training set."""
    if task == "sst2":
        header, *lines = gzip.decompress((glue / "SST-2/train.tsv.gz").read_bytes()).decode().splitlines()
    elif task == "mrpc":
        header, *lines = (glue / "MRPC/train.tsv").read_text("utf-8-sig").splitlines()
    else:
        rows = json.loads(gzip.decompress((glue / "QNLI/glue_pretrain_train.json.gz").read_bytes()))
        return [], [json.dumps(row) for row in list(rows.values())[:RTE_ROWS]]
    return [header], lines


def main(data: Path, folder: Path) -> None:
    """Write the sets of all tasks."""
    for task in ("sst2", "mrpc", "qnli"):
        header, lines = read(data / "glue", task)
        train = [line for number, line in enumerate(lines) if number % 10 != 1]
        sets = {"choice": [line for number, line in enumerate(lines) if number % 10 == 1][:500], "train": train}
        for seed in SEEDS:
            order = random.Random(seed).sample(train, len(train))
            sets |= {f"{percent}_{seed}": order[: round(len(lines) * percent / 100)] for percent in PERCENT}
        (folder / task).mkdir(parents=True, exist_ok=True)
        for name, chosen in sets.items():
            file = folder / task / f"{name}{'.tsv' if header else '.jsonl'}"
            file.write_text("\n".join(header + chosen) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
