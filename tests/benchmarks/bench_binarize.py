"""How fast binarization is next to the tokenizer alone and to `datasets.map`, and whether its memory stays constant.

Run `python tests/benchmarks/bench_binarize.py [text file ...]`; without files the text is the docstrings of the
installed libraries. Speeds are compared within one run, round by round, since a machine's own speed varies.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from results import told

from potstill.data.common.tokenizers import describe, load_backend, train_wordpiece
from potstill.data.corpus.binarize import BATCH_CHARACTERS, binarize
from potstill.data.corpus.docstrings import Docstrings
from potstill.data.corpus.sources import TextFiles, TextSource

CORES = 2
ROUNDS = 3
SPEED_CHARACTERS = 30 * 10**6
MEMORY_MEGABYTES = (10, 100)


def main() -> None:
    """Print the ratios of speed, then the peaks of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="plain or gzip text files")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; default: one trained on the text")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.build, arguments.tokenizer, arguments.build.parent / "memory-cache")
        return
    with tempfile.TemporaryDirectory(prefix="bench-binarize-") as at:
        root = Path(at)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
        source: TextSource = Docstrings(None, None, root)
        if arguments.files:
            source = TextFiles(tuple(arguments.files), "line", "^</?doc", None, root)
        source.check()
        texts = [text for batch in source.batches(BATCH_CHARACTERS) for text in batch]
        folder = arguments.tokenizer or train_wordpiece(source, 30_000, root)
        speed(texts, folder, root)
        memory(texts, folder, root)


def speed(texts: list[str], folder: Path, root: Path) -> None:
    """Print tokens a second of binarization as ratios to the tokenizer's batch and single encoding, and to `map`."""
    sample = write(texts, SPEED_CHARACTERS, root / "speed.txt")
    tokenizer = load_backend(folder)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    rates: dict[str, list[float]] = {"binarize": [], "batch": [], "single": [], "map": []}
    for number in range(ROUNDS):
        begun = time.perf_counter()
        encodings = tokenizer.encode_batch_fast(sample, add_special_tokens=False)
        batch_seconds = time.perf_counter() - begun
        tokens = sum(map(len, encodings))
        del encodings
        begun = time.perf_counter()
        build(root / "speed.txt", folder, root / f"speed-cache-{number}")
        rates["binarize"].append(tokens / (time.perf_counter() - begun))
        rates["batch"].append(tokens / batch_seconds)
        few = sample[:: len(sample) // 10_000 + 1]
        begun = time.perf_counter()
        few_tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in few)
        rates["single"].append(few_tokens / (time.perf_counter() - begun))
        begun = time.perf_counter()
        mapped(root / "speed.txt", folder, root / f"map-{number}")
        rates["map"].append(tokens / (time.perf_counter() - begun))
    print(f"{CORES} cores, {tokens:,} tokens")
    for name in ("batch", "single", "map"):
        told("binarization", {"binarize": rates["binarize"], name: rates[name]})


def memory(texts: list[str], folder: Path, root: Path) -> None:
    """Print the peak memory of the process tree that binarizes a small and a large text."""
    peaks = []
    for megabytes in MEMORY_MEGABYTES:
        write(texts, megabytes * 10**6, root / "memory.txt")
        script = [sys.executable, __file__, "--build", str(root / "memory.txt"), "--tokenizer", str(folder)]
        peaks.append(peak_of(script))
        print(f"  {megabytes} MB of text: peak {peaks[-1]:.0f} MB over all processes")
    print(f"  peak, large / small: {peaks[1] / peaks[0]:.2f}")


def build(text: Path, folder: Path, cache: Path) -> None:
    """Binarize one text file, from start to end."""
    source = TextFiles((str(text),), "line", None, None, cache)
    store = binarize(source, describe(folder), cache=cache, max_length=128, num_proc=CORES)
    (cache / "report.json").write_text(json.dumps(store.index["report"]))


def mapped(text: Path, folder: Path, cache: Path) -> None:
    """Tokenize one text file with `datasets.map`, from start to end."""
    from datasets import Dataset, disable_progress_bars
    from transformers import PreTrainedTokenizerFast

    disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    data = Dataset.from_text(str(text), cache_dir=str(cache))
    encode = partial(tokenizer, truncation=True, max_length=128, return_token_type_ids=False)
    data.map(encode, batched=True, num_proc=CORES, remove_columns=["text"], input_columns=["text"])


def write(texts: list[str], characters: int, path: Path) -> list[str]:
    """Write about so many characters of texts, again and again in another order."""
    order, written, kept = random.Random(0), 0, []
    with path.open("w", encoding="utf-8") as stream:
        while written < characters:
            for text in order.sample(texts, len(texts)):
                stream.write(text + "\n")
                kept.append(text)
                written += len(text)
                if written >= characters:
                    break
    return kept


def peak_of(script: list[str]) -> float:
    """Run a script; the peak, in MB, of the memory of it and its descendants (shared pages counted once)."""
    peak = 0.0
    with subprocess.Popen(script) as process:
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.05):
                peak = max(peak, tree_megabytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        process.wait()
        done.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(process.returncode)
    return peak


def tree_megabytes(pid: int) -> float:
    """Proportional memory of a process and its descendants; 0 for what has just ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return 0.0
    own = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return own / 1000 + sum(map(tree_megabytes, children))


if __name__ == "__main__":
    main()
