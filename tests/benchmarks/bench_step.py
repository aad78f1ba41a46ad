"""One distillation step of ours against the textbook's: tokens a second, peak memory, and that the losses agree.

Run `python tests/benchmarks/bench_step.py kd` (or `diito`). Ours is what `training/language.py` does with a
micro-batch: the backbones of both models, the fused vocabulary losses, the backward pass; the textbook's is in
`textbook.py`. Teacher (BERT) and student (a DistilBERT of half its layers) have random weights; the losses are over all
real tokens. With `--peer products` the other side is the matrix products of our step alone, see `products.py`: the
floor. Each has a process of its own, ours prepared as `train.py` prepares it (`process.py`), the textbook's
as it comes. They run on the same batches in turns, since a machine's own speed varies; the batches of the rounds differ
in length, the sequences of a batch hardly. Dropout is on while speed is measured and off while the losses are compared.
"""

import argparse
import contextlib
import gc
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from products import recorded, seconds_of
from sides import Step, memory, shaped_parser, speed
from textbook import diito_step, kd_step
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from potstill.data.corpus.datamodule import MicroBatch, StepBatch, pad
from potstill.data.corpus.masking import IGNORED, mask_tokens
from potstill.interchange.intervene import Swap
from potstill.interchange.mappings import read_mappings
from potstill.interchange.plans import PlanSettings, cut_swaps, draw_swaps, partners
from potstill.models.backbone import backbone_of
from potstill.models.preparing import halve_products, set_checkpointing
from potstill.models.specs import default_layers
from potstill.models.students import student_from_layers
from potstill.objectives.interchange import Interchange
from potstill.objectives.language import LanguageObjective
from potstill.runtime.kernels import use_kernels
from potstill.runtime.kernels.masks import use_fast_masks
from potstill.runtime.process import prepare

TEMPERATURE = 2.0
WEIGHTS = {
    "kd": {"ce": 5.0, "mlm": 2.0, "cos": 1.0},
    "diito": {"ce": 0.25, "mlm": 0.25, "cos": 0.25, "causal_ce": 0.25},
}
LAYOUT = "single_middle"
LENGTH_BIN = 4
SPECIAL_TOKENS = 5  # ids below are never drawn; the first pads, the last masks
TOLERANCE = {False: 1e-4, True: 5e-2}  # by whether bf16 takes part


Losses = Callable[[str, PreTrainedModel, PreTrainedModel, MicroBatch, StepBatch], dict[str, float]]


def main() -> None:
    """Print the peaks of memory, then the speeds and how far apart the losses are."""
    arguments = parse()
    print(
        f"{arguments.objective}: BERT of {arguments.layers} layers -> DistilBERT of {arguments.layers // 2}, width "
        f"{arguments.hidden}, vocabulary {arguments.vocabulary:,}, batch {arguments.batch}, {arguments.threads} "
        f"threads, {arguments.precision}",
        flush=True,
    )
    setups = {"ours": partial(setup, "ours"), arguments.peer: partial(setup, arguments.peer)}
    own = " (torch's products)" if arguments.own_products else ""
    what = f"{arguments.objective} step, {arguments.precision}{own}"
    added = memory(setups, arguments) if arguments.peer == "textbook" else None
    speed(setups, arguments, TOLERANCE[arguments.precision != "fp32"], what, added)


def parse() -> argparse.Namespace:
    parser = shaped_parser(__doc__, layers="of the teacher; the student has half of them")
    parser.add_argument("objective", choices=tuple(WEIGHTS))
    parser.add_argument("--peer", choices=("textbook", "products"), default="textbook")
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
        "--own-products", action="store_true", help="ours without kernels/onednn.py: torch's own float32 products"
    )
    return parser.parse_args()


def ours(
    name: str, teacher: PreTrainedModel, student: PreTrainedModel, micro: MicroBatch, step: StepBatch
) -> dict[str, float]:
    backbones = backbone_of(student), backbone_of(teacher)
    interchange = Interchange(read_mappings(LAYOUT, backbones[1], backbones[0]))
    objective = LanguageObjective("masked", WEIGHTS[name], TEMPERATURE, interchange=interchange)
    share = objective(*backbones, micro, objective.denominators(step))
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
        (mapping,) = read_mappings(LAYOUT, backbone_of(teacher), backbone_of(student))
        blocks = mapping.teacher[0].block, mapping.student[0].block
        assert micro.swap is not None
        losses = diito_step(*inputs, (micro.swap.base, micro.swap.source), blocks, TEMPERATURE, WEIGHTS[name])
    return {name: float(value) for name, value in losses.items()}


LOSSES: dict[str, Losses] = {"ours": ours, "textbook": textbook, "products": ours}


def setup(name: str, arguments: argparse.Namespace) -> Step:
    """The models of one side, and its step."""
    teacher, student = models(name, arguments)

    def step(length: int, seed: int, training: bool) -> tuple[float, dict[str, float], int]:
        micro, whole = batch(arguments, length, seed)
        student.train(training)
        student.zero_grad(set_to_none=True)
        gc.collect()
        torch.manual_seed(seed)
        half = in_half(name, arguments)
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
            whole_step = partial(LOSSES[name], arguments.objective, teacher, student, micro, whole)
            products, losses = recorded(whole_step) if name == "products" else (None, whole_step())
        seconds = time.perf_counter() - begun if products is None else seconds_of(products)
        return seconds, losses, whole.tokens

    return step


def in_half(name: str, arguments: argparse.Namespace) -> bool:
    return arguments.precision == "bf16" or (arguments.precision == "bf16-over-fp32" and name != "textbook")


def models(name: str, arguments: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Teacher and student, the same in both processes."""
    if name != "textbook":
        prepare()
        use_fast_masks() if arguments.own_products else use_kernels()
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
    student = student_from_layers(teacher, default_layers(arguments.layers), architecture="distilbert").train()
    if name != "textbook" and in_half(name, arguments):
        halve_products(teacher, torch.bfloat16)
    if name != "textbook" and arguments.checkpointing != "none":
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
