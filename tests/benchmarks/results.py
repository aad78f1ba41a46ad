"""Results of benchmarks: printed, and as rows for `table.py`."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

FILE = "POTSTILL_BENCH_ROWS"  # environment variable: the file that rows are appended to


def told(
    what: str,
    rates: Mapping[str, Sequence[float]],
    unit: str = "tokens/s",
    *,
    added: Mapping[str, float] | None = None,
    target: float | None = None,
) -> None:
    """Print what two sides do in a second, and the median of their ratios in each round, with its range.

    Args:
        what: is measured.
        rates: of two sides in each round, by name; the ratio is the first over the second.
        unit: of the rates.
        added: megabytes that a step adds to each side's memory.
        target: what the ratio should be, at least.
    """
    one, other = rates
    for name, found in rates.items():
        print(f"  {name:9s} {statistics.median(found):12,.1f} {unit}, median of {len(found)} rounds")
    ratios = [a / b for a, b in zip(rates[one], rates[other], strict=True)]
    wanted = "" if target is None else f", target {target} or more"
    median, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"  {what}, {one} / {other}: {median:.2f} ({low:.2f} to {high:.2f}){wanted}", flush=True)
    if path := os.environ.get(FILE):
        row = {
            "what": what, "ours": one, "peer": other, "unit": unit, "our_rate": statistics.median(rates[one]),
            "peer_rate": statistics.median(rates[other]), "ratio": median, "low": low, "high": high,
            "rounds": len(ratios), "our_mb": added and added[one], "peer_mb": added and added[other],
        }  # fmt: skip
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
