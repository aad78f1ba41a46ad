"""Two sides of a benchmark on the same batches in turns, each in a process of its own: speed, memory, equal losses."""

import argparse
import contextlib
import ctypes
import gc
import multiprocessing
import resource
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from results import told

Step = Callable[[int, int, bool], tuple[float, dict[str, float], int]]
"""A step on a batch of a length, a seed, in training or without dropout: its seconds, losses and tokens."""
Setup = Callable[[argparse.Namespace], Step]
"""Makes the models of one side in its process, and gives its step."""


def shaped_parser(description: str | None, layers: str) -> argparse.ArgumentParser:
    """The options of every step that is measured: the shape of the models and of the batches.

    Args:
        description: of the benchmark.
        layers: help of `--layers`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help=layers)
    parser.add_argument("--hidden", type=int, default=768, help="width; there is a head for every 64, or one")
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--batch", type=int, default=8, help="sequences")
    parser.add_argument(
        "--lengths", type=int, nargs=2, default=(64, 128), metavar=("SHORTEST", "LONGEST"), help="tokens"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def speed(
    setups: Mapping[str, Setup],
    arguments: argparse.Namespace,
    tolerance: float,
    what: str,
    added: Mapping[str, float] | None = None,
) -> None:
    """Compare the losses without dropout, then time rounds of one step each with it.

    Args:
        setups: two sides by name; the ratio is the first over the second.
        arguments: lengths (shortest and longest) and rounds.
        tolerance: largest relative difference of a loss.
        what: is measured.
        added: megabytes of `memory`.
    """
    sides = {name: started(serve, setup, arguments) for name, setup in setups.items()}
    shortest, longest = arguments.lengths
    apart = difference(*(asked(side, name, longest, 0, False)[1] for name, side in sides.items()))
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, arguments.rounds):
        length = round(shortest + (max(number, 0) + 0.5) / arguments.rounds * (longest - shortest))
        for name, side in sides.items():
            seconds, _, tokens = asked(side, name, length, number + 1, True)
            if number >= 0:
                rates[name].append(tokens / seconds)
    for side in sides.values():
        side.send(None)
    told(what, rates, added=added)
    verdict = "agree" if apart <= tolerance else "DIFFER"
    print(f"  losses {verdict}: largest relative difference {apart:.1e}, allowed {tolerance:.0e}")


def memory(setups: Mapping[str, Setup], arguments: argparse.Namespace) -> dict[str, float]:
    """Print and return the megabytes that a step on the longest sequences adds to a process that holds both models."""
    one, other = setups
    added = {}
    for name, setup in setups.items():
        side = started(measure, setup, arguments)
        try:
            added[name] = side.recv()
        except EOFError:
            raise SystemExit(f"the process that measures {name} died") from None
    for name, megabytes in added.items():
        print(f"  {name:9s} {megabytes / arguments.batch:10,.1f} MB a sequence, {megabytes:,.0f} MB added by a step")
    print(f"  memory, {other} / {one}: {added[other] / added[one]:.2f}", flush=True)
    return added


def started(target: Callable[..., None], setup: Setup, arguments: argparse.Namespace) -> Connection:
    """A process of its own for one side; the libraries are imported already, but nothing has run."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    fork.Process(target=target, args=(setup, arguments, there), daemon=True).start()
    there.close()
    return here


def asked(side: Connection, name: str, *request: object) -> tuple[float, dict[str, float], int]:
    """What the side's step gives."""
    side.send(request)
    try:
        return side.recv()
    except EOFError:
        raise SystemExit(f"the process that runs {name} died") from None


def serve(setup: Setup, arguments: argparse.Namespace, requests: Connection) -> None:
    """Answers requests for steps, until it is told None."""
    step = setup(arguments)
    while (request := requests.recv()) is not None:
        requests.send(step(*request))


def measure(setup: Setup, arguments: argparse.Namespace, sender: Connection) -> None:
    """Answers with the megabytes that the first step adds."""
    step = setup(arguments)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    level = fresh_level()
    step(arguments.lengths[1], 0, True)
    sender.send(max(peak() - level, 1e-3))


def difference(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest relative difference of any loss."""
    assert one.keys() == other.keys()
    return max(abs(one[name] - other[name]) / abs(other[name]) for name in one)


def fresh_level() -> float:
    """Megabytes in use now, from where the peak is counted anew where Linux lets it be."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """Peak megabytes of this process."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
