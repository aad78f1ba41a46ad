"""The pictures of docs/results.md: `python docs/pictures/plots.py`, from the CSV files of docs/results/, as seeds.svg.

`python docs/pictures/plots.py <folder>` draws diito.svg too, the learning curves, from the folder of
docs/results/wikipedia.sh, whose runs are named `<layers>_<percent>_<none|kd|diito>_<seed>`.
"""

import csv
import hashlib
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
GREY, BLUE, ORANGE = "#888888", "#3366cc", "#cc5500"
METHODS = {"none": ("no teacher", GREY), "kd": ("KD", BLUE), "diito": ("DIITO", ORANGE)}
SEEDS = (1, 2, 3)
TICKS = (60, 80, 100, 150, 200, 300, 400)
# Title, file, what its rows have, arms from the top: (label, value of the column `arm`, colour).
PANELS = (
    (
        "Wikipedia, 3 layers: perplexity (less is better)",
        "wikipedia.csv",
        {"setting": "3 layers, all of the text", "metric": "perplexity"},
        (
            ("no teacher", "no teacher, 700 steps", GREY),
            ("KD", "KD, 700 steps", BLUE),
            ("DIITO", "DIITO, 700 steps", ORANGE),
            ("KD, DIITO's time", "KD, DIITO's time", BLUE),
        ),
    ),
    (
        "MRPC, 3 layers: F1",
        "tasks.csv",
        {"setting": "MRPC", "metric": "F1"},
        (
            ("no teacher", "no teacher", GREY),
            ("KD", "KD", BLUE),
            ("KD and matches", "KD and `L3`", ORANGE),
            ("teacher", "teacher", "black"),
        ),
    ),
    (
        "Word problems, all rows: accuracy",
        "step_by_step.csv",
        {"setting": "word problems", "share": "100 %"},
        (("labels", "`standard`", GREY), ("labels, rationales", "`task_prefix`", ORANGE)),
    ),
    (
        "Sums, 500 rows, 20,000 prompts: exact match",
        "generative.csv",
        {"setting": "500 rows with completions, 20,000 prompts"},
        (
            ("before", "student before", "black"),
            ("no teacher", "no teacher, given completions", GREY),
            ("JSD", "JSD, given completions", BLUE),
            ("JSD, sampled", "JSD, all steps sampled", ORANGE),
            ("teacher's text", "the teacher's completions, no divergence", BLUE),
            ("teacher's text, JSD", "the teacher's completions, JSD", ORANGE),
        ),
    ),
)


def values(file: str, wanted: dict[str, str]) -> list[float]:
    """The values of the rows of a CSV file that have these entries, seed by seed."""
    with (HERE.parent / "results" / file).open() as rows:
        found = [float(row["value"]) for row in csv.DictReader(rows) if wanted.items() <= row.items()]
    assert found, (file, wanted)
    return found


def drawn() -> str:
    """A digest of all that seeds.svg shows; the file says which one it was drawn from."""
    shown = [
        (title, arms, [values(file, wanted | {"arm": arm}) for _, arm, _ in arms])
        for title, file, wanted, arms in PANELS
    ]
    return hashlib.sha256(repr(shown).encode()).hexdigest()


def save(figure: plt.Figure, name: str, **metadata: str) -> None:
    """Write a picture, with the same bytes every time."""
    plt.rcParams["svg.hashsalt"] = "potstill"
    figure.savefig(HERE / name, metadata={"Date": None, **metadata})


def seeds() -> None:
    """A panel per method: a dot for every seed, a bar at the mean."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 4.4), layout="constrained")
    for panel, (title, file, wanted, arms) in zip(panels.flat, PANELS, strict=True):
        for height, (_, arm, colour) in enumerate(arms):
            found = values(file, wanted | {"arm": arm})
            panel.scatter(found, [height] * len(found), color=colour, s=22, alpha=0.8, lw=0)
            panel.plot([np.mean(found)] * 2, [height - 0.3, height + 0.3], color=colour, lw=2)
        panel.set_title(title, fontsize=10)
        panel.set_yticks(range(len(arms)), [label for label, _, _ in arms])
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    save(figure, "seeds.svg", Description=drawn())


def curve(folder: Path) -> tuple[list[int], list[float]]:
    """Steps and validation perplexities of a run."""
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/perplexity")]
    found = {int(row["step"]): float(row["val/perplexity"]) for row in rows}
    return list(found), list(found.values())


def curves(runs: Path) -> None:
    """Four panels, each with the mean of the seeds and the range between them."""
    figure, panels = plt.subplots(1, 4, figsize=(11, 2.8), sharey=True, layout="constrained")
    cells = [(layers, percent) for layers in (3, 2) for percent in (100, 10)]
    for panel, (layers, percent) in zip(panels, cells, strict=True):
        for method, (name, colour) in METHODS.items():
            found = [curve(runs / f"{layers}_{percent}_{method}_{seed}") for seed in SEEDS]
            steps, perplexities = found[0][0], np.array([own for _, own in found])
            panel.plot(steps, perplexities.mean(0), color=colour, label=name)
            panel.fill_between(steps, perplexities.min(0), perplexities.max(0), color=colour, alpha=0.15, lw=0)
        panel.set(title=f"{layers} layers, {percent} % of the text", xlabel="step", yscale="log")
        panel.set_yticks(TICKS, map(str, TICKS))
        panel.minorticks_off()
    panels[0].set_ylabel("perplexity")
    panels[0].legend(frameon=False)
    save(figure, "diito.svg")


if __name__ == "__main__":
    seeds()
    if sys.argv[1:]:
        curves(Path(sys.argv[1]))
