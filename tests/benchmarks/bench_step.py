"""One distillation step of ours against the textbook's: tokens a second, peak memory, and that the losses agree.

Run `python tests/benchmarks/bench_step.py kd` (or `diito`). Ours is what `modules/distillation.py` does with a
micro-batch: the trunks of both models, the fused vocabulary losses, the backward pass; the textbook's is in
`textbook.py`. Teacher (BERT) and student (a DistilBERT of half its layers) have random weights; the losses are over all
real tokens. Each has a process of its own, ours prepared as `train.py` prepares it (`process.py`), the textbook's
as it comes. They run on the same batches in turns, since a machine's own speed varies; the batches of the rounds differ
in length, the sequences of a batch hardly. Dropout is on while speed is measured and off while the losses are compared.
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
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from textbook import diito_step, kd_step
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from potstill.data.corpus.datamodule import MicroBatch, StepBatch, pad
from potstill.data.corpus.masking import IGNORED, mask_tokens
from potstill.interchange.intervene import Swap
from potstill.interchange.mappings import read_mappings
from potstill.interchange.plans import PlanSettings, cut_swaps, draw_swaps, partners
from potstill.models.specs import default_layers
from potstill.models.students import halve_products, set_checkpointing, student_from_layers
from potstill.models.trunk import trunk_of
from potstill.objectives.interchange import Interchange
from potstill.objectives.language import LanguageObjective
from potstill.onednn import use_onednn
from potstill.process import prepare

TEMPERATURE = 2.0
WEIGHTS = {
    "kd": {"ce": 5.0, "mlm": 2.0, "cos": 1.0},
    "diito": {"ce": 0.25, "mlm": 0.25, "cos": 0.25, "causal_ce": 0.25},
}
LAYOUT = "single_middle"
LENGTH_BIN = 4
SPECIAL_TOKENS = 5  # ids below are never drawn; the first pads, the last masks
TOLERANCE = {False: 1e-4, True: 5e-2}  # by whether bf16 takes part


Step = Callable[[str, PreTrainedModel, PreTrainedModel, MicroBatch, StepBatch], dict[str, float]]


def main() -> None:
    """Print the peaks of memory, then the speeds and how far apart the losses are."""
    arguments = parse()
    print(
        f"{arguments.objective}: BERT of {arguments.layers} layers -> DistilBERT of {arguments.layers // 2}, width "
        f"{arguments.hidden}, vocabulary {arguments.vocabulary:,}, batch {arguments.batch}, {arguments.threads} "
        f"threads, {arguments.precision}",
        flush=True,
    )
    memory(arguments)
    speed(arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("objective", choices=tuple(WEIGHTS))
    parser.add_argument("--layers", type=int, default=12, help="of the teacher; the student has half of them")
    parser.add_argument("--hidden", type=int, default=768, help="width; there is a head for every 64, or one")
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--batch", type=int, default=8, help="sequences")
    parser.add_argument(
        "--lengths", type=int, nargs=2, default=(64, 128), metavar=("SHORTEST", "LONGEST"), help="tokens"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "bf16-over-fp32"),
        default="fp32",
        help="bf16: autocast, as precision=bf16-mixed; the last: ours in bf16 against the textbook's in fp32",
    )
    parser.add_argument(
        "--checkpointing",
        choices=("none", "selective", "full"),
        default="selective",
        help="student.checkpointing of ours",
    )
    parser.add_argument(
        "--own-products", action="store_true", help="ours without onednn.py: torch's own float32 products"
    )
    return parser.parse_args()


def ours(
    name: str, teacher: PreTrainedModel, student: PreTrainedModel, micro: MicroBatch, step: StepBatch
) -> dict[str, float]:
    trunks = trunk_of(student), trunk_of(teacher)
    interchange = Interchange(read_mappings(LAYOUT, trunks[1], trunks[0]))
    objective = LanguageObjective("masked", WEIGHTS[name], TEMPERATURE, interchange=interchange)
    share = objective(*trunks, micro, objective.denominators(step))
    share.loss.backward()
    return {name: float(value) for name, value in {**share.terms, "total": share.loss.detach()}.items()}


def textbook(
    name: str, teacher: PreTrainedModel, student: PreTrainedModel, micro: MicroBatch, step: StepBatch
) -> dict[str, float]:
    labels = torch.full_like(micro.input_ids, IGNORED)
    labels.view(-1)[micro.positions] = micro.labels
    inputs = (teacher, student, micro.input_ids, micro.attention_mask, labels)
    if name == "kd":
        losses = kd_step(*inputs, TEMPERATURE, WEIGHTS[name])
    else:
        (mapping,) = read_mappings(LAYOUT, trunk_of(teacher), trunk_of(student))
        blocks = mapping.teacher[0].block, mapping.student[0].block
        assert micro.swap is not None
        losses = diito_step(*inputs, (micro.swap.base, micro.swap.source), blocks, TEMPERATURE, WEIGHTS[name])
    return {name: float(value) for name, value in losses.items()}


STEPS: dict[str, Step] = {"ours": ours, "textbook": textbook}


def speed(arguments: argparse.Namespace) -> None:
    """Compare the losses without dropout, then time rounds of one step each with it."""
    sides = {name: started(serve, name, arguments) for name in STEPS}
    shortest, longest = arguments.lengths
    losses = [asked(sides[name], name, longest, 0, False)[1] for name in STEPS]
    apart = difference(*losses)
    rates: dict[str, list[float]] = {name: [] for name in STEPS}
    for number in range(-1, arguments.rounds):
        length = round(shortest + (max(number, 0) + 0.5) / arguments.rounds * (longest - shortest))
        for name, side in sides.items():
            seconds, _, tokens = asked(side, name, length, number + 1, True)
            if number >= 0:
                rates[name].append(tokens / seconds)
    for side in sides.values():
        side.send(None)
    for name, found in rates.items():
        print(f"  {name:9s} {statistics.median(found):10,.1f} tokens/s, median of {arguments.rounds} rounds")
    ratios = [one / other for one, other in zip(rates["ours"], rates["textbook"], strict=True)]
    print(
        f"  speed, ours / textbook: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    tolerance = TOLERANCE[arguments.precision != "fp32"]
    verdict = "agree" if apart <= tolerance else "DIFFER"
    print(f"  losses {verdict}: largest relative difference {apart:.1e}, allowed {tolerance:.0e}")


def started(target: Callable[..., None], name: str, arguments: argparse.Namespace) -> Connection:
    """A process of its own for one side; the libraries are imported already, but nothing has run."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    fork.Process(target=target, args=(name, arguments, there), daemon=True).start()
    there.close()
    return here


def asked(side: Connection, name: str, *request: object) -> tuple[float, dict[str, float], int]:
    side.send(request)
    try:
        return side.recv()
    except EOFError:
        raise SystemExit(f"the process that runs {name} died") from None


def serve(name: str, arguments: argparse.Namespace, requests: Connection) -> None:
    """Answers (length, seed, training) with seconds, losses and tokens, until it is told None."""
    teacher, student = models(name, arguments)
    while (request := requests.recv()) is not None:
        length, seed, training = request
        micro, step = batch(arguments, length, seed)
        student.train(training)
        requests.send((*timed(name, arguments, teacher, student, micro, step), step.tokens))


def timed(
    name: str,
    arguments: argparse.Namespace,
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    micro: MicroBatch,
    step: StepBatch,
) -> tuple[float, dict[str, float]]:
    """Seconds and losses of a step."""
    student.zero_grad(set_to_none=True)
    gc.collect()
    torch.manual_seed(step.seed)
    half = in_half(name, arguments)
    begun = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
        losses = STEPS[name](arguments.objective, teacher, student, micro, step)
    return time.perf_counter() - begun, losses


def in_half(name: str, arguments: argparse.Namespace) -> bool:
    return arguments.precision == "bf16" or (arguments.precision == "bf16-over-fp32" and name == "ours")


def difference(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest relative difference of any loss."""
    assert one.keys() == other.keys()
    return max(abs(one[name] - other[name]) / abs(other[name]) for name in one)


def memory(arguments: argparse.Namespace) -> None:
    """Print what a step on the longest sequences adds to the memory of a process that holds both models."""
    added = {}
    for name in STEPS:
        side = started(measure, name, arguments)
        try:
            added[name] = side.recv()
        except EOFError:
            raise SystemExit(f"the process that measures {name} died") from None
    for name, megabytes in added.items():
        print(
            f"  {name:9s} {megabytes / arguments.batch:10,.1f} MB a sequence, {megabytes:,.0f} MB added by a step"
        )
    print(f"  memory, textbook / ours: {added['textbook'] / added['ours']:.2f}", flush=True)


def measure(name: str, arguments: argparse.Namespace, sender: Connection) -> None:
    teacher, student = models(name, arguments)
    micro, step = batch(arguments, arguments.lengths[1], seed=0)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    level = fresh_level()
    timed(name, arguments, teacher, student, micro, step)
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


def models(name: str, arguments: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Teacher and student, the same in both processes."""
    if name == "ours":
        prepare()
        if not arguments.own_products:
            use_onednn()
    torch.set_num_threads(arguments.threads)
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
    student = student_from_layers(
        teacher, default_layers(arguments.layers), architecture="distilbert"
    ).train()
    if name == "ours" and in_half(name, arguments):
        halve_products(teacher, torch.bfloat16)
    if name == "ours" and arguments.checkpointing != "none":
        set_checkpointing(student, arguments.checkpointing)
    return teacher, student


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
    swaps = draw_swaps(lengths, partners(len(lengths)), PlanSettings(), rng)
    places = cut_swaps(swaps, np.arange(len(lengths)), micro.input_ids.shape[1])
    micro.swap = Swap(*(torch.from_numpy(indices) for indices in places))
    micro.reached = torch.ones_like(micro.positions, dtype=torch.bool)
    return micro, StepBatch([micro], len(ids), int((labels != IGNORED).sum()), seed, reached=len(ids))


def allowed(vocabulary: int) -> Tensor:
    weights = torch.ones(vocabulary)
    weights[:SPECIAL_TOKENS] = 0
    return weights


if __name__ == "__main__":
    main()
