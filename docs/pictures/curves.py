"""Learning curves of "Wikipedia: no teacher, KD and DIITO" in docs/results.md, as docs/pictures/diito.svg.

Run `python docs/pictures/curves.py <folder>` on the folder of docs/results/wikipedia.sh, whose runs are named
`<layers>_<percent>_<none|kd|diito>_<seed>`.
"""

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

METHODS = {"none": ("no teacher", "#888888"), "kd": ("KD", "#3366cc"), "diito": ("DIITO", "#cc5500")}
SEEDS = (1, 2, 3)
TICKS = (60, 80, 100, 150, 200, 300, 400)


def curve(folder: Path) -> tuple[list[int], list[float]]:
    """Steps and validation perplexities of a run."""
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/perplexity")]
    found = {int(row["step"]): float(row["val/perplexity"]) for row in rows}
    return list(found), list(found.values())


def main(runs: Path) -> None:
    """Four panels, each with the mean of the seeds and the range between them."""
    figure, panels = plt.subplots(1, 4, figsize=(11, 2.8), sharey=True, layout="constrained")
    cells = [(layers, percent) for layers in (3, 2) for percent in (100, 10)]
    for panel, (layers, percent) in zip(panels, cells, strict=True):
        for method, (name, colour) in METHODS.items():
            found = [curve(runs / f"{layers}_{percent}_{method}_{seed}") for seed in SEEDS]
            steps, values = found[0][0], np.array([values for _, values in found])
            panel.plot(steps, values.mean(0), color=colour, label=name)
            panel.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        panel.set(title=f"{layers} layers, {percent} % of the text", xlabel="step", yscale="log")
        panel.set_yticks(TICKS, map(str, TICKS))
        panel.minorticks_off()
    panels[0].set_ylabel("perplexity")
    panels[0].legend(frameon=False)
    plt.rcParams["svg.hashsalt"] = "potstill"  # the same file every time
    figure.savefig(Path(__file__).with_name("diito.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
