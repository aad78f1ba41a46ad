"""A distillation step beside the live teacher against one that reads its stored outputs: tokens a second.

Run `python tests/benchmarks/bench_cache.py`. A step is the objective's forward and backward pass over one micro-batch,
the reading of the store included, the optimizer not. Teacher and student are BERTs of random weights, 12 and 3 layers;
batches are random tokens of like lengths. Two cases: a classifier (soft targets of 2 labels, kept whole) and a masked
language model (soft targets of all real tokens, and masked tokens), whose outputs are kept as the likeliest tokens,
as drawn ones or as hidden states; the relative distance of the student's gradient from the live teacher's is printed,
too. Steps go in turns, since a machine's own speed varies; a ratio is of two steps on the same batch.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from results import told
from sides import shaped_parser
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, PreTrainedModel

from potstill.data.common.batching import Ints
from potstill.data.common.store import ShardWriter
from potstill.data.corpus.datamodule import MicroBatch, StepBatch, pad
from potstill.data.corpus.masking import IGNORED, mask_tokens
from potstill.data.tasks.datamodule import TaskBatch, TaskStep
from potstill.data.tasks.labels import CLASSIFICATION
from potstill.models.backbone import backbone_of
from potstill.models.students import student_from_layers
from potstill.objectives.language import LanguageObjective, Stored
from potstill.objectives.task import ModelReader, StoredReader, TaskObjective
from potstill.objectives.terms import TermSums
from potstill.runtime.kernels import use_kernels
from potstill.runtime.process import prepare
from potstill.teacher_cache.computing import computing, write_logits, write_vocabulary
from potstill.teacher_cache.formats import FullFormat, SampledFormat, StoredLogits, StoredVocabulary, TopFormat
from potstill.teacher_cache.hidden import HiddenFormat, Projection, StoredHidden
from potstill.teacher_cache.store import OutputStore, build_outputs

TEMPERATURE = 2.0
LENGTH_BIN = 4
SPECIAL_TOKENS = 5  # ids below are never drawn; the first pads, the last masks
Form = TopFormat | SampledFormat | HiddenFormat
Run = Callable[[int], TermSums]  # number of a batch -> its losses


def main() -> None:
    """Print the speeds of both cases."""
    arguments = parse()
    prepare()
    use_kernels()
    torch.set_num_threads(arguments.threads)
    print(
        f"BERT of {arguments.layers} layers -> {max(arguments.layers // 4, 1)}, width {arguments.hidden}, vocabulary "
        f"{arguments.vocabulary:,}, batch {arguments.batch}, lengths {arguments.lengths[0]} to {arguments.lengths[1]}, "
        f"{arguments.threads} threads, fp32",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for case in (task, language):
            case(arguments, Path(folder))


def parse() -> argparse.Namespace:
    parser = shaped_parser(__doc__, layers="of the teacher; the student has a quarter")
    return parser.parse_args()


def task(arguments: argparse.Namespace, folder: Path) -> None:
    """A classifier."""
    teacher, student = models(arguments, BertForSequenceClassification)
    steps = [task_step(arguments, *drawn) for drawn in sequences(arguments)]
    form, rows = FullFormat(2), arguments.batch * len(steps)

    def write(writer: ShardWriter) -> None:
        with computing(teacher, "32-true", torch.device("cpu")) as backbone:
            write_logits(backbone, (step.micro[0] for step in steps), form, writer, lambda _: None)

    store = build_outputs(folder / "task", {"case": "task"}, form.fields, rows, write)
    stored = StoredLogits(store, form, np.arange(rows))
    objective = TaskObjective(CLASSIFICATION, {"ce": 1.0, "label": 0.5}, TEMPERATURE)
    ours = ModelReader(backbone_of(student), CLASSIFICATION)
    theirs = ModelReader(backbone_of(teacher), CLASSIFICATION, teacher=0)

    def live(number: int) -> TermSums:
        return objective(ours, [theirs], steps[number].micro[0], objective.denominators(steps[number]))

    def cached(number: int) -> TermSums:
        step = steps[number]
        readers = [StoredReader(stored, CLASSIFICATION)]
        return objective(ours, readers, step.micro[0], objective.denominators(step))

    runs = {"live": live, "all logits": cached}
    report("classifier", student, runs, [step.tokens for step in steps], {"all logits": size(store)})


def language(arguments: argparse.Namespace, folder: Path) -> None:
    """A masked language model."""
    teacher, student = models(arguments, BertForMaskedLM)
    steps = [language_step(arguments, *drawn) for drawn in sequences(arguments)]
    tokens = [step.tokens for step in steps]
    for step, first in zip(steps, np.cumsum(tokens) - tokens, strict=True):
        step.micro[0].units = torch.arange(first, first + step.tokens)
    objective = LanguageObjective("masked", {"ce": 5.0, "mlm": 2.0}, TEMPERATURE)
    ours, theirs = backbone_of(student), backbone_of(teacher)

    def live(number: int) -> TermSums:
        return objective(ours, theirs, steps[number].micro[0], objective.denominators(steps[number]))

    width = arguments.vocabulary
    forms: dict[str, Form] = {
        "top 64": TopFormat(64, width, (TEMPERATURE,)),
        "drawn 50": SampledFormat(50, width, 0, TEMPERATURE, systematic=True),
        "hidden": HiddenFormat(arguments.hidden),
        "hidden bf16": HiddenFormat(arguments.hidden, "bfloat16"),
    }
    runs: dict[str, Run] = {"live": live}
    sizes = {}
    for name, form in forms.items():

        def write(writer: ShardWriter, form: Form = form) -> None:
            with computing(teacher, "32-true", torch.device("cpu")) as backbone:
                write_vocabulary(backbone, (step.micro[0] for step in steps), form, writer, lambda _: None)

        store = build_outputs(folder / name, {"case": name}, form.fields, sum(tokens), write)
        sizes[name] = size(store)
        if isinstance(form, HiddenFormat):
            stored: Stored = StoredHidden(store, form, Projection(theirs))
        else:
            stored = StoredVocabulary(store, form, TEMPERATURE)

        def cached(number: int, stored: Stored = stored) -> TermSums:
            step = steps[number]
            return objective(ours, None, step.micro[0], objective.denominators(step), stored)

        runs[name] = cached
    report("language model", student, runs, tokens, sizes)


def models(arguments: argparse.Namespace, kind: type[PreTrainedModel]) -> tuple[PreTrainedModel, PreTrainedModel]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.hidden // 64),
        intermediate_size=4 * arguments.hidden,
        max_position_embeddings=max(512, arguments.lengths[1]),
        initializer_range=0.1,  # logits as far apart as a trained model's
        pad_token_id=0,
    )
    teacher = kind(config).requires_grad_(False).eval()
    layers = [round(layer) for layer in np.linspace(0, arguments.layers - 1, max(arguments.layers // 4, 1))]
    return teacher, student_from_layers(teacher, layers).requires_grad_(True).train()


def sequences(arguments: argparse.Namespace) -> Iterator[tuple[Ints, Ints, int]]:
    """Ids, lengths and the number of each round's batch; the batches differ in length, the sequences of one hardly."""
    shortest, longest = arguments.lengths
    for number in range(arguments.rounds):
        rng = np.random.default_rng(number)
        most = round(shortest + (number + 0.5) / arguments.rounds * (longest - shortest))
        lengths = rng.integers(max(1, most - LENGTH_BIN + 1), most, arguments.batch, endpoint=True)
        yield rng.integers(SPECIAL_TOKENS, arguments.vocabulary, lengths.sum()), lengths, number


def padded(ids: Ints, lengths: Ints) -> MicroBatch:
    flat = torch.from_numpy(ids)
    return pad(flat, torch.full_like(flat, IGNORED), lengths, np.cumsum(lengths) - lengths, pad_id=0)


def task_step(arguments: argparse.Namespace, ids: Ints, lengths: Ints, number: int) -> TaskStep:
    micro = padded(ids, lengths)
    rows = torch.arange(len(lengths)) + number * arguments.batch
    types = torch.zeros_like(micro.input_ids)
    batch = TaskBatch(micro.input_ids, micro.attention_mask, types, rows % 2, rows)
    return TaskStep([batch], len(lengths), int(lengths.sum()), number)


def language_step(arguments: argparse.Namespace, ids: Ints, lengths: Ints, number: int) -> StepBatch:
    weights = torch.ones(arguments.vocabulary)
    weights[:SPECIAL_TOKENS] = 0
    inputs, labels = mask_tokens(
        torch.from_numpy(ids),
        weights,
        share=0.15,
        replace=(0.8, 0.1, 0.1),
        mask_id=SPECIAL_TOKENS - 1,
        generator=torch.Generator().manual_seed(number),
    )
    micro = pad(inputs, labels, lengths, np.cumsum(lengths) - lengths, pad_id=0)
    return StepBatch([micro], len(ids), int((labels != IGNORED).sum()), number)


def size(store: OutputStore) -> float:
    """Bytes a unit."""
    return sum(file.stat().st_size for file in store.folder.glob("*.npy")) / len(store)


def gradient(student: PreTrainedModel, run: Run) -> torch.Tensor:
    """The student's gradient of the first batch, as one vector."""
    student.zero_grad(set_to_none=True)
    run(0).loss.backward()
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


def report(
    case: str, student: PreTrainedModel, runs: dict[str, Run], tokens: list[int], sizes: dict[str, float]
) -> None:
    """Time each run on each batch, in turns, and print."""
    student.eval()
    losses = {name: float(run(0).terms["ce"]) for name, run in runs.items()}
    gradients = {name: gradient(student, run) for name, run in runs.items()}
    student.train()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, len(tokens)):
        for name, run in runs.items():
            student.zero_grad(set_to_none=True)
            torch.manual_seed(number + 1)
            begun = time.perf_counter()
            run(max(number, 0)).loss.backward()
            seconds = time.perf_counter() - begun
            if number >= 0:  # the first is warm-up
                rates[name].append(tokens[number] / seconds)
    print(f"{case}:")
    unit = "row" if "all logits" in sizes else "token"
    for name, loss in losses.items():
        apart = (gradients[name] - gradients["live"]).norm() / gradients["live"].norm()
        kept = f", gradient off by {apart:.1e}, {sizes[name]:.1f} bytes a {unit}" if name in sizes else ""
        print(f"  {name:11s} ce {loss:.4f}{kept}")
    for name in sizes:
        told(f"cached teacher, {case}", {name: rates[name], "live": rates["live"]})


if __name__ == "__main__":
    main()
