"""One distillation step of ours against the textbook's: tokens a second, peak memory, and that the losses agree.

Run `python tests/benchmarks/bench_kd_step.py`. Ours is what `modules/distillation.py` does with a micro-batch: the
trunks of both models, the fused vocabulary losses, the backward pass; the textbook's is `textbook.kd_step`. Teacher
(BERT) and student (a DistilBERT of half its layers) have random weights; ce, mlm and cos are weighted 5, 2 and 1 at
T 2, over all real tokens. Both run on the same batches in turns, since a machine's own speed varies; the batches of
the rounds differ in length, the sequences of a batch hardly. Memory is measured in a process of its own for each.
"""

import argparse
import contextlib
import ctypes
import gc
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from textbook import kd_step
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from potstill.data.corpus.datamodule import MicroBatch, StepBatch, pad
from potstill.data.corpus.masking import IGNORED, mask_tokens
from potstill.models.specs import default_layers
from potstill.models.students import student_from_layers
from potstill.models.trunk import trunk_of
from potstill.objectives.language import LanguageObjective

TEMPERATURE = 2.0
WEIGHTS = {"ce": 5.0, "mlm": 2.0, "cos": 1.0}
LENGTH_BIN = 4
SPECIAL_TOKENS = 5  # ids below are never drawn; the first pads, the last masks
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}

Step = Callable[[PreTrainedModel, PreTrainedModel, MicroBatch, StepBatch], dict[str, float]]


def main() -> None:
    """Print the peaks of memory, then the speeds and how far apart the losses are."""
    arguments = parse()
    print(
        f"BERT of {arguments.layers} layers -> DistilBERT of {arguments.layers // 2}, width {arguments.hidden}, "
        f"vocabulary {arguments.vocabulary:,}, batch {arguments.batch}, {arguments.threads} threads, "
        f"{'bf16' if arguments.bf16 else 'fp32'}",
        flush=True,
    )
    memory(arguments)
    speed(arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12, help="of the teacher; the student has half of them")
    parser.add_argument("--hidden", type=int, default=768, help="width; there is a head for every 64, or one")
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--batch", type=int, default=8, help="sequences")
    parser.add_argument(
        "--lengths", type=int, nargs=2, default=(64, 128), metavar=("SHORTEST", "LONGEST"), help="tokens"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16, as precision=bf16-mixed")
    return parser.parse_args()


def ours(
    teacher: PreTrainedModel, student: PreTrainedModel, micro: MicroBatch, step: StepBatch
) -> dict[str, float]:
    objective = LanguageObjective("masked", WEIGHTS, TEMPERATURE)
    share = objective(trunk_of(student), trunk_of(teacher), micro, objective.denominators(step))
    share.loss.backward()
    return {name: float(value) for name, value in {**share.terms, "total": share.loss.detach()}.items()}


def textbook(
    teacher: PreTrainedModel, student: PreTrainedModel, micro: MicroBatch, step: StepBatch
) -> dict[str, float]:
    labels = torch.full_like(micro.input_ids, IGNORED)
    labels.view(-1)[micro.positions] = micro.labels
    losses = kd_step(teacher, student, micro.input_ids, micro.attention_mask, labels, TEMPERATURE, WEIGHTS)
    return {name: float(value) for name, value in losses.items()}


STEPS: dict[str, Step] = {"ours": ours, "textbook": textbook}


def speed(arguments: argparse.Namespace) -> None:
    """Rounds of one step each; the first round is not counted."""
    torch.set_num_threads(arguments.threads)
    teacher, student = models(arguments)
    rates: dict[str, list[float]] = {name: [] for name in STEPS}
    apart = 0.0
    shortest, longest = arguments.lengths
    for number in range(-1, arguments.rounds):
        share = (number + 0.5) / arguments.rounds if number >= 0 else 1.0
        length = round(shortest + share * (longest - shortest))
        micro, step = batch(arguments, length, seed=number + 1)
        losses = {}
        for name, run in STEPS.items():
            seconds, losses[name] = timed(run, teacher, student, micro, step, arguments.bf16)
            if number >= 0:
                rates[name].append(step.tokens / seconds)
        apart = max(apart, difference(losses["ours"], losses["textbook"]))
    for name, found in rates.items():
        print(f"  {name:9s} {statistics.median(found):10,.1f} tokens/s, median of {arguments.rounds} rounds")
    ratios = [one / other for one, other in zip(rates["ours"], rates["textbook"], strict=True)]
    print(
        f"  speed, ours / textbook: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    tolerance = TOLERANCE[torch.bfloat16 if arguments.bf16 else torch.float32]
    verdict = "agree" if apart <= tolerance else "DIFFER"
    print(f"  losses {verdict}: largest relative difference {apart:.1e}, allowed {tolerance:.0e}")


def timed(
    run: Step,
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    micro: MicroBatch,
    step: StepBatch,
    bf16: bool,
) -> tuple[float, dict[str, float]]:
    """Seconds and losses of a step; dropout is the same for both ways."""
    student.zero_grad(set_to_none=True)
    gc.collect()
    torch.manual_seed(step.seed)
    begun = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
        losses = run(teacher, student, micro, step)
    return time.perf_counter() - begun, losses


def difference(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest relative difference of any loss."""
    assert one.keys() == other.keys()
    return max(abs(one[name] - other[name]) / abs(other[name]) for name in one)


def memory(arguments: argparse.Namespace) -> None:
    """Print what a step on the longest sequences adds to the memory of a process that holds both models."""
    fork = multiprocessing.get_context("fork")  # the libraries are imported already, but nothing has run
    added = {}
    for name in STEPS:
        receiver, sender = fork.Pipe(duplex=False)
        child = fork.Process(target=measure, args=(name, arguments, sender))
        child.start()
        sender.close()
        try:
            added[name] = receiver.recv()
        except EOFError:
            raise SystemExit(f"the process that measures {name} died") from None
        child.join()
    for name, megabytes in added.items():
        print(
            f"  {name:9s} {megabytes / arguments.batch:10,.1f} MB a sequence, {megabytes:,.0f} MB added by a step"
        )
    print(f"  memory, textbook / ours: {added['textbook'] / added['ours']:.2f}", flush=True)


def measure(
    name: str, arguments: argparse.Namespace, sender: "multiprocessing.connection.Connection"
) -> None:
    torch.set_num_threads(arguments.threads)
    teacher, student = models(arguments)
    micro, step = batch(arguments, arguments.lengths[1], seed=0)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    level = fresh_level()
    timed(STEPS[name], teacher, student, micro, step, arguments.bf16)
    sender.send(max(peak() - level, 1e-3))


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


def models(arguments: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedModel]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.hidden // 64),
        intermediate_size=4 * arguments.hidden,
        max_position_embeddings=max(512, arguments.lengths[1]),
        initializer_range=0.1,  # logits as far apart as a trained model's: with 0.02, ce is all rounding
        pad_token_id=0,
    )
    teacher = BertForMaskedLM(config).requires_grad_(False).eval()
    layers = default_layers(arguments.layers)
    return teacher, student_from_layers(teacher, layers, architecture="distilbert").train()


def batch(arguments: argparse.Namespace, longest: int, seed: int) -> tuple[MicroBatch, StepBatch]:
    """Random sequences of like lengths, masked as in training."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(max(1, longest - LENGTH_BIN + 1), longest, arguments.batch, endpoint=True)
    ends = np.cumsum(lengths)
    ids = torch.from_numpy(rng.integers(SPECIAL_TOKENS, arguments.vocabulary, ends[-1]))
    inputs, labels = mask_tokens(
        ids,
        allowed(arguments.vocabulary),
        share=0.15,
        replace=(0.8, 0.1, 0.1),
        mask_id=SPECIAL_TOKENS - 1,
        generator=torch.Generator().manual_seed(seed),
    )
    micro = pad(inputs, labels, lengths, ends - lengths, pad_id=0)
    return micro, StepBatch([micro], len(ids), int((labels != IGNORED).sum()), seed)


def allowed(vocabulary: int) -> Tensor:
    weights = torch.ones(vocabulary)
    weights[:SPECIAL_TOKENS] = 0
    return weights


if __name__ == "__main__":
    main()
