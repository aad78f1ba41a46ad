"""A step of task distillation with hidden matches, ours against the published TextBrewer's own.

Run `pip install --no-deps textbrewer` (with tensorboard: `pip install 'potstill[bench]'`), then
`python tests/benchmarks/bench_toolkit.py`. Teacher and student are BERT classifiers with random weights, the student of
the teacher's layers; soft targets by cross entropy and the toolkit's match for students of three layers (mean squared
distance of four hidden states). Both sides compute the same losses on the same padded rows, each
in its process: ours prepared as `train.py` prepares it, the package as it comes, with the models' hidden states as its
examples ask for them. The batches of the rounds differ in length, the rows of a batch by a quarter.
"""

import argparse
import gc
import importlib.util
import tempfile
import time
from functools import partial

import numpy as np
import torch
from sides import Step, memory, shaped_parser, speed
from transformers import BertConfig, BertForSequenceClassification

from potstill.data.tasks.datamodule import TaskBatch, TaskStep
from potstill.models.backbone import backbone_of
from potstill.models.preparing import set_checkpointing
from potstill.models.students import student_from_layers
from potstill.objectives.matches import Matches
from potstill.objectives.matching import read_matches
from potstill.objectives.soft_targets import SoftTargets
from potstill.objectives.task import ModelReader, TaskObjective
from potstill.runtime.kernels import use_kernels
from potstill.runtime.process import prepare

TEMPERATURE = 8.0
LABELS = 3
PRESET = "L3_hidden_mse"  # its nst divides by the length where the paper, and ours, divide by the width
STUDENT_DEPTH = 3
FIRST_WORD = 5  # ids below are never drawn; the first pads


def main() -> None:
    """Print the peaks of memory, then the speeds and how far apart the losses are."""
    arguments = parse()
    if importlib.util.find_spec("textbrewer") is None:
        raise SystemExit("textbrewer is not installed: pip install --no-deps textbrewer tensorboard")
    print(
        f"soft targets and matches {PRESET}: BERT of {arguments.layers} layers -> {STUDENT_DEPTH}, width "
        f"{arguments.hidden}, batch {arguments.batch}, {arguments.threads} threads, fp32",
        flush=True,
    )
    setups = {"ours": partial(setup, ours), "textbrewer": partial(setup, textbrewer)}
    what = f"task student with matches, checkpointing {arguments.checkpointing}"
    speed(setups, arguments, 1e-4, what, memory(setups, arguments))


def parse() -> argparse.Namespace:
    parser = shaped_parser(__doc__, layers="of the teacher")
    parser.add_argument(
        "--checkpointing",
        choices=("none", "selective", "full"),
        default="selective",
        help="student.checkpointing of ours",
    )
    return parser.parse_args()


def setup(make, arguments: argparse.Namespace) -> Step:
    """A side's step with its clock."""
    losses_of, student = make(arguments)

    def step(length: int, seed: int, training: bool) -> tuple[float, dict[str, float], int]:
        rows = batch(arguments, length, seed)
        student.train(training)
        student.zero_grad(set_to_none=True)
        gc.collect()
        torch.manual_seed(seed)
        begun = time.perf_counter()
        loss = losses_of(rows)
        loss.backward()
        seconds = time.perf_counter() - begun
        return seconds, {"total": float(loss.detach())}, int(rows.attention_mask.sum())

    return step


def ours(arguments: argparse.Namespace):
    """The objective that `objective=task_kd objective.matches=L3_hidden_mse` builds."""
    prepare()
    use_kernels()
    teacher, student = models(arguments)
    if arguments.checkpointing != "none":
        set_checkpointing(student, arguments.checkpointing)
    theirs, own = backbone_of(teacher), backbone_of(student)
    read = read_matches(PRESET, [theirs.spec], own.spec)
    objective = TaskObjective(
        "labels",
        {"ce": 1.0, **{match.term: match.weight for match in read}},
        TEMPERATURE,
        soft=SoftTargets("cross_entropy"),
        matches=Matches(read, [theirs], own, seed=0),
    )

    student_reader, teacher_reader = ModelReader(own, "labels"), ModelReader(theirs, "labels", teacher=0)

    def losses_of(rows: TaskBatch) -> torch.Tensor:
        lengths = rows.attention_mask.sum(dim=1)
        count = len(rows.rows)
        whole = TaskStep([rows], count, int(lengths.sum()), 0, sequences=count, pairs=int((lengths**2).sum()))
        return objective(student_reader, [teacher_reader], rows, objective.denominators(whole)).loss

    return losses_of, student


def textbrewer(arguments: argparse.Namespace):
    """The package's distiller, by its own step on a batch."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    torch.set_num_threads(arguments.threads)
    teacher, student = models(arguments)
    matches = []
    for match in read_matches(PRESET, [backbone_of(teacher).spec], backbone_of(student).spec):
        one = match.loss == "hidden_mse"
        theirs, own = (places[0] if one else list(places) for places in (match.teacher, match.student))
        matches.append(
            {"layer_T": theirs, "layer_S": own, "feature": "hidden", "loss": match.loss, "weight": match.weight}
        )
    folder = tempfile.TemporaryDirectory()  # it logs there
    distiller = GeneralDistiller(
        TrainingConfig(device="cpu", log_dir=None, output_dir=folder.name),
        DistillationConfig(temperature=TEMPERATURE, hard_label_weight=0, intermediate_matches=matches),
        teacher,
        student,
        adaptor,
        adaptor,
    )

    def losses_of(rows: TaskBatch) -> torch.Tensor:
        inputs = {
            "input_ids": rows.input_ids,
            "attention_mask": rows.attention_mask,
            "token_type_ids": rows.token_type_ids,
        }
        return distiller.train_on_batch(inputs, {"output_hidden_states": True})[0]

    losses_of.folder = folder  # type: ignore[attr-defined]  # it lives as long
    return losses_of, student


def adaptor(batch: dict, outputs) -> dict:
    """What the toolkit reads of a BERT classifier."""
    return {"logits": outputs.logits, "hidden": outputs.hidden_states, "inputs_mask": batch["attention_mask"]}


def models(arguments: argparse.Namespace) -> tuple[BertForSequenceClassification, BertForSequenceClassification]:
    """Teacher and student, the same in both processes."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.hidden // 64),
        intermediate_size=4 * arguments.hidden,
        num_labels=LABELS,
        pad_token_id=0,
    )
    teacher = BertForSequenceClassification(config).requires_grad_(False).eval()
    layers = [round((i + 1) * arguments.layers / STUDENT_DEPTH) - 1 for i in range(STUDENT_DEPTH)]
    return teacher, student_from_layers(teacher, layers)


def batch(arguments: argparse.Namespace, longest: int, seed: int) -> TaskBatch:
    """Random rows, the shortest a quarter shorter than the longest."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(max(1, longest - longest // 4), longest, arguments.batch, endpoint=True)
    lengths[0] = longest
    mask = np.arange(longest) < lengths[:, None]
    ids = rng.integers(FIRST_WORD, arguments.vocabulary, mask.shape) * mask
    return TaskBatch(
        torch.from_numpy(ids),
        torch.from_numpy(mask.astype(np.int64)),
        torch.zeros(mask.shape, dtype=torch.long),
        torch.from_numpy(rng.integers(0, LABELS, len(lengths))),
        torch.arange(len(lengths)),
    )


if __name__ == "__main__":
    main()
