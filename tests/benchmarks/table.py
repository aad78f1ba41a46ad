"""Run the benchmarks one after the other and print one table: `make bench`.

`--csv FILE` writes the rows with the machine and the versions; `--only WORD` chooses commands by a word in them. Real
data is that of `$POTSTILL_DATA_DIR`; without it rows and texts are drawn. The machine should do nothing else.
"""

import argparse
import csv
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import FILE
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
VERSIONS = ("torch", "transformers", "lightning", "datasets", "trl", "textbrewer", "sentence_transformers")
COLUMNS = (
    "what", "ours", "peer", "unit", "our_rate", "peer_rate", "ratio", "low", "high", "rounds", "our_mb", "peer_mb",
)  # fmt: skip
PEERS = {
    "--peer gkd": "trl",
    "--peer distillation": "trl",
    "bench_toolkit": "textbrewer",
    "bench_embedding": "sentence_transformers",
}  # packages that a command needs


def main() -> None:
    """Run, print, write; exit code 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="file for the rows")
    parser.add_argument("--only", action="append", default=[], help="word that a command has; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the commands")
    arguments = parser.parse_args()
    chosen = [one for one in commands() if not arguments.only or any(word in one for word in arguments.only)]
    if arguments.list:
        print("\n".join(chosen))
        return
    rows, failed = [], []
    for command in chosen:
        print(f"\n{command}", flush=True)
        if (package := missing(command)) is not None:
            print(f"  left out: {package} is not installed, pip install 'potstill[bench]'")
            continue
        found = rows_of(command)
        failed += [command] * (found is None)
        rows += [{**row, "command": command} for row in found or ()]
    Console().print(table(rows))
    print(machine())
    if arguments.csv is not None:
        write(rows, arguments.csv)
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))


def commands() -> list[str]:
    """What is measured, in this order."""
    data = os.environ.get("POTSTILL_DATA_DIR")
    tokenizer = f"--tokenizer {data}/tokenizers" if data else ""
    wikipedia = f"{data}/corpus/enwiki/enwiki_AA_00-09.txt.gz"
    files = f"{wikipedia} {tokenizer}/bert-base-uncased" if data else ""
    wiki = f"--file {wikipedia}" if data else ""
    sst2 = f"--file {data}/glue/SST-2/train.tsv.gz {tokenizer}/bert-base-uncased" if data else ""
    cqa = f"--folder {data}/stepbystep {tokenizer}/t5" if data else ""
    precisions = ("fp32", "bf16", "bf16-over-fp32")
    found = [
        *(f"bench_step.py {name} --precision {one}" for name in ("kd", "diito") for one in precisions),
        "bench_step.py diito --own-products",
        *(
            f"bench_step.py {name} --peer products --precision {one}"
            for name in ("kd", "diito")
            for one in precisions[:2]
        ),
        *(f"bench_toolkit.py --checkpointing {way}" for way in ("selective", "none")),
        *(f"bench_generative.py --layers 8 --batch 4 --peer {peer}" for peer in ("textbook", "gkd", "distillation")),
        *(f"bench_embedding.py {wiki} --precision {one}" for one in ("fp32", "bf16")),
        f"bench_tasks.py {sst2}",
        f"bench_step_by_step.py {cqa}",
        "bench_cache.py",
        f"bench_binarize.py {files}",
        "bench_loop.py",
    ]
    return [command.strip() for command in found]


def missing(command: str) -> str | None:
    """The package of a command's peer, if it is not installed."""
    needed = [package for word, package in PEERS.items() if word in command]
    return next((package for package in needed if importlib.util.find_spec(package) is None), None)


def rows_of(command: str) -> list[dict[str, Any]] | None:
    """Run a benchmark; its rows, or None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        script, *options = shlex.split(command)
        done = subprocess.run([sys.executable, str(HERE / script), *options], env={**os.environ, FILE: str(file)})
        if done.returncode:
            return None
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for the terminal."""
    made = Table("what", "peer", "ours", "peer's", "unit", "ratio", "range", "its memory over ours")
    for row in rows:
        over = f"{row['peer_mb'] / row['our_mb']:.2f}" if row["our_mb"] else ""
        made.add_row(
            f"{row['what']}" + ("" if row["ours"] == "ours" else f": {row['ours']}"), row["peer"],
            f"{row['our_rate']:,.1f}", f"{row['peer_rate']:,.1f}", row["unit"], f"{row['ratio']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}", over,
        )  # fmt: skip
    return made


def machine() -> str:
    """Processor, cores and versions."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags")).split()
        model += "".join(f", {name}" for name in ("avx512_bf16", "amx_bf16") if name in flags)
    except (OSError, StopIteration):
        pass
    found = {name: importlib.metadata.version(name) for name in VERSIONS if importlib.util.find_spec(name)}
    return f"{model}, {os.cpu_count()} cores; " + ", ".join(f"{name} {version}" for name, version in found.items())


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows as CSV, with date, machine and command."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*COLUMNS, "command", "date", "machine"])
        for row in rows:
            writer.writerow([*(row[column] for column in COLUMNS), row["command"], today, machine()])


if __name__ == "__main__":
    main()
