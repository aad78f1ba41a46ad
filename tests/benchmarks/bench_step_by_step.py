"""Step-by-step distillation against the textbook trainer: training and generated examples a second.

Run `python tests/benchmarks/bench_step_by_step.py --folder <the sets> --tokenizer <T5's folder>`, which takes the real
rows of CommonsenseQA with PaLM's rationales, or without a folder, where lengths like theirs and random ids are drawn.
The student has T5-efficient-mini's shape and random weights.

Training: ours is what `train.py objective=step_by_step` does with a step: the data module, the objective, the backward
pass, clipping, AdamW. The textbook (the published trainer) runs each task through the model by itself, batches in the
order of the file padded to their longest row, all logits of all positions made. A round has as many batches of each:
ours from evenly spaced quantiles of the epoch's batches by size, so that a round stands for an epoch.

Generation: the student first learns the labels of those rows, since what never ends cannot end early. Ours takes
rows of like length together and ends when all rows of a batch have ended; the textbook takes them in the order of the
file and writes `--written` tokens of each. Both keep the keys and values of earlier tokens.
"""

import argparse
import contextlib
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from results import told
from sides import Setup, Step, asked, serve, started
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from potstill.data.common.steps import BatchSettings
from potstill.data.common.tokenizers import describe
from potstill.data.rationales.datamodule import VALID, RationaleDataModule, RationaleSequences, RationaleStep
from potstill.data.rationales.features import RationaleFeatures, rationale_features
from potstill.data.rationales.forms import Tokens
from potstill.data.rationales.readers import read_split
from potstill.data.rationales.rows import EXPLAIN, PREDICT, for_training
from potstill.models.seq2seq import Seq2Seq, seq2seq_from_config
from potstill.objectives.task_prefix import TaskPrefixObjective
from potstill.runtime.kernels import use_kernels
from potstill.runtime.process import prepare

TRAINING_TARGET, GENERATION_TARGET = 1.5, 2.0
PAD, END = 0, 1
ALPHA = 0.5
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
LABEL, RATIONALE, INPUT = (3, 4), (9, 52), (26, 80)  # tokens of drawn texts, about those of CommonsenseQA


def main() -> None:
    arguments = parse()
    print(
        f"T5 of {arguments.layers} + {arguments.layers} layers, width {arguments.hidden}, vocabulary "
        f"{arguments.vocabulary}, batch {arguments.batch}, {arguments.threads} threads",
        flush=True,
    )
    for precision in arguments.precision:
        measure_training(precision, arguments)
    prepare()
    use_kernels()
    torch.set_num_threads(arguments.threads)
    features = features_of(arguments)
    mean = {name: getattr(features, name).lengths.mean() for name in ("predict", "labels", "rationales")}
    print(
        f"{len(features):,} rows of {mean['predict']:.0f} input, {mean['labels']:.1f} label and "
        f"{mean['rationales']:.0f} rationale tokens on average"
    )
    measure_generation(student_of(arguments), features, arguments)


def student_of(arguments: argparse.Namespace) -> nn.Module:
    """Random weights, the same in every process."""
    torch.manual_seed(0)
    shape = {
        "model_type": "t5", "d_model": arguments.hidden, "d_kv": arguments.hidden // 6, "d_ff": 4 * arguments.hidden,
        "num_layers": arguments.layers, "num_heads": 8,
    }  # fmt: skip
    return seq2seq_from_config(shape, vocab_size=arguments.vocabulary, pad_token_id=PAD, eos_token_id=END)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="of the sets, as data.folder")
    parser.add_argument("--tokenizer", help="folder of T5's tokenizer")
    parser.add_argument("--precision", nargs="+", choices=tuple(TOLERANCE), default=list(TOLERANCE))
    parser.add_argument("--layers", type=int, default=4, help="of encoder and of decoder")
    parser.add_argument("--hidden", type=int, default=384, help="width")
    parser.add_argument("--vocabulary", type=int, default=32128)
    parser.add_argument("--rows", type=int, default=9741, help="that are drawn")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=60, help="steps in which labels are learnt, to be written")
    parser.add_argument("--evaluated", type=int, default=128, help="rows that are written of")
    parser.add_argument("--written", type=int, default=64, help="tokens, as data.generation_max_length")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def measure_training(precision: str, arguments: argparse.Namespace) -> None:
    """Each side in a process of its own, since what `kernels` does is for a whole process."""
    setups = {"ours": ours_of(precision), "textbook": textbook_of(precision)}
    sides = {name: started(serve, setup, arguments) for name, setup in setups.items()}
    losses = [asked(side, name, 0, 0, False)[1]["total"] for name, side in sides.items()]
    gap = abs(losses[0] - losses[1]) / abs(losses[1])
    if gap > TOLERANCE[precision]:
        raise SystemExit(f"the losses of the same rows DIFFER: {losses[0]:.6f} and {losses[1]:.6f}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, arguments.rounds):  # the first one warms up
        for name in list(sides)[:: 1 if number % 2 else -1]:
            steps = range(arguments.steps if number >= 0 else 1)
            took = sum(asked(sides[name], name, max(number, 0), place, True)[0] for place in steps)
            if number >= 0:
                seconds[name].append(took)
    for side in sides.values():
        side.send(None)
    found = rates(seconds, arguments.steps * arguments.batch)
    told(f"step-by-step training, {precision}", found, "examples/s", target=TRAINING_TARGET)
    print(f"  losses agree: {losses[0]:.6f} and {losses[1]:.6f}", flush=True)


def ours_of(precision: str) -> Setup:
    """What makes our side, which does a step of a round, or tells the loss of some rows."""

    def setup(arguments: argparse.Namespace) -> Step:
        prepare()
        use_kernels()
        torch.set_num_threads(arguments.threads)
        rounds, side = (Rounds(features_of(arguments), arguments), Ours(student_of(arguments), precision))

        def step(number: int, place: int, training: bool) -> tuple[float, dict[str, float], int]:
            begun = time.perf_counter()
            if training:
                side(rounds.step(rounds.of_ours(number)[place]))
                return time.perf_counter() - begun, {}, arguments.batch
            return 0.0, {"total": side.loss(rounds.step(rounds.shared))}, arguments.batch

        return step

    return setup


def textbook_of(precision: str) -> Setup:
    """What makes the other side, in a process as torch makes it."""

    def setup(arguments: argparse.Namespace) -> Step:
        torch.set_num_threads(arguments.threads)
        features, side = features_of(arguments), Textbook(student_of(arguments), precision)
        rounds = Rounds(features, arguments)

        def step(number: int, place: int, training: bool) -> tuple[float, dict[str, float], int]:
            begun = time.perf_counter()
            if training:
                side(textbook_batch(features, rounds.of_textbook(number)[place]))
                return time.perf_counter() - begun, {}, arguments.batch
            return 0.0, {"total": side.loss(textbook_batch(features, rounds.shared))}, arguments.batch

        return step

    return setup


class Ours:
    """The step of `modules/task_prefix.py`."""

    def __init__(self, student: nn.Module, precision: str):
        self.student, self.view = student.train(), Seq2Seq(student)
        self.objective, self.precision = TaskPrefixObjective(ALPHA), precision
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)

    def __call__(self, step: RationaleStep) -> None:
        for micro in step.micro:
            with cast(self.precision):
                share = self.objective(self.view, micro, step.targets)
            share.loss.backward()
        finish(self.student, self.optimizer)

    @torch.no_grad()
    def loss(self, step: RationaleStep) -> float:
        self.student.eval()
        with cast(self.precision):
            found = sum(float(self.objective(self.view, micro, step.targets).loss) for micro in step.micro)
        self.student.train()
        return found


class Textbook:
    """A task at a time through the whole model, which makes the logits of every position, padding included."""

    def __init__(self, student: nn.Module, precision: str):
        self.student, self.precision = student.train(), precision
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)

    def __call__(self, batch: dict[str, dict[str, Tensor]]) -> None:
        self._loss(batch).backward()
        finish(self.student, self.optimizer)

    @torch.no_grad()
    def loss(self, batch: dict[str, dict[str, Tensor]]) -> float:
        self.student.eval()
        found = float(self._loss(batch))
        self.student.train()
        return found

    def _loss(self, batch: dict[str, dict[str, Tensor]]) -> Tensor:
        with cast(self.precision):
            predict, explain = (self.student(**batch[task]).loss for task in (PREDICT, EXPLAIN))
        return ALPHA * predict + (1 - ALPHA) * explain


def cast(precision: str) -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def finish(student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class Rounds:
    """Which rows each side takes in which round."""

    def __init__(self, features: RationaleFeatures, arguments: argparse.Namespace):
        self.steps = arguments.steps
        settings = BatchSettings(seed=0, batch_size=arguments.batch)
        self.data = RationaleDataModule(RationaleSequences(features), {}, pad_id=PAD, settings=settings)
        items = [item["rows"].numpy() for item in self.data.train_dataloader()]
        whole = [rows for rows in items if len(rows) == arguments.batch]
        self.ours = sorted(whole, key=lambda rows: padded_tokens(features, rows))
        places = np.arange(len(features) // arguments.batch * arguments.batch)
        self.textbook = np.split(places, len(places) // arguments.batch)
        self.sequences = RationaleSequences(features)
        self.shared = self.ours[len(self.ours) // 2]  # whose losses are compared

    def of_ours(self, number: int) -> list[NDArray]:
        """Batches at evenly spaced quantiles of size, other ones each round."""
        share = (number % 3 + 1) / 4
        return [self.ours[int((place + share) / self.steps * len(self.ours))] for place in range(self.steps)]

    def of_textbook(self, number: int) -> list[NDArray]:
        """The next batches of the file."""
        start = number * self.steps
        return [self.textbook[(start + place) % len(self.textbook)] for place in range(self.steps)]

    def step(self, rows: NDArray) -> RationaleStep:
        item = self.sequences.item(rows, rows[:0], 0, True)
        return self.data.on_after_batch_transfer(item, 0)


def padded_tokens(features: RationaleFeatures, rows: NDArray) -> int:
    columns = (features.predict, features.explain, features.labels, features.rationales)
    return sum(int(tokens.lengths[rows].max()) for tokens in columns) * len(rows)


def textbook_batch(features: RationaleFeatures, rows: NDArray) -> dict[str, dict[str, Tensor]]:
    """Inputs and targets of each task, padded to its longest row."""
    columns = {PREDICT: ("predict", "labels"), EXPLAIN: ("explain", "rationales")}
    made = {}
    for task, (read, written) in columns.items():
        ids = padded(texts_of(getattr(features, read), rows), PAD)
        labels = padded(texts_of(getattr(features, written), rows), -100)
        made[task] = {"input_ids": ids, "attention_mask": ids.ne(PAD).long(), "labels": labels}
    return made


def texts_of(tokens: Tokens, rows: NDArray) -> list[Tensor]:
    ends = np.cumsum(tokens.lengths, dtype=np.int64)
    return [torch.from_numpy(tokens.ids[ends[row] - tokens.lengths[row] : ends[row]]).long() for row in rows]


def padded(texts: list[Tensor], value: int) -> Tensor:
    return pad_sequence(texts, batch_first=True, padding_value=value)


def measure_generation(student: nn.Module, features: RationaleFeatures, arguments: argparse.Namespace) -> None:
    settings = BatchSettings(seed=0, batch_size=arguments.batch, eval_batch_size=arguments.batch)
    evaluated = select(features, np.arange(min(arguments.evaluated, len(features))))
    learn_labels(student, evaluated, settings, arguments.warmup)
    student.eval()
    part = RationaleSequences(evaluated, explains=False)
    data = RationaleDataModule(None, {VALID: part}, pad_id=PAD, settings=settings)
    sides = {
        "ours": lambda: written_by_ours(Seq2Seq(student), data, arguments.written),
        "textbook": lambda: written_by_textbook(student, evaluated, arguments.batch, arguments.written),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds):
        texts = {}
        for name, write in list(sides.items())[:: 1 if number % 2 else -1]:
            begun = time.perf_counter()
            texts[name] = write()
            seconds[name].append(time.perf_counter() - begun)
        other = [row for row in texts["ours"] if texts["ours"][row] != texts["textbook"][row]]
        if other or len(texts["ours"]) != len(evaluated):
            raise SystemExit(f"the predictions of {len(other)} of {len(evaluated)} rows DIFFER")
    found = rates(seconds, len(evaluated))
    told("step-by-step generation, fp32", found, "examples/s", target=GENERATION_TARGET)
    length = statistics.mean(map(len, texts["ours"].values()))
    print(f"  predictions agree: {len(evaluated)} rows, {length:.1f} tokens on average")


def learn_labels(student: nn.Module, features: RationaleFeatures, settings: BatchSettings, steps: int) -> None:
    data = RationaleDataModule(RationaleSequences(features, explains=False), {}, pad_id=PAD, settings=settings)
    student.train()
    view, objective = Seq2Seq(student), TaskPrefixObjective(explains=False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, fused=True)
    for item in itertools.islice(itertools.chain.from_iterable(itertools.repeat(data.train_dataloader())), steps):
        step = data.on_after_batch_transfer(item, 0)
        for micro in step.micro:
            objective(view, micro, step.targets).loss.backward()
        finish(student, optimizer)


@torch.no_grad()
def written_by_ours(view: Seq2Seq, data: RationaleDataModule, most: int) -> dict[int, list[int]]:
    """As the module evaluators: one pass of the encoder, then tokens until all rows of a batch have ended."""
    texts = {}
    for item in data.val_dataloader()[0]:
        for batch in data.on_after_batch_transfer(item, 0).micro:
            context = view.context(batch.input_ids, batch.attention_mask)
            tokens = view.write(context, slice(None), most)
            texts |= dict(zip(batch.rows[PREDICT].tolist(), map(cut, tokens.tolist()), strict=True))
    return texts


@torch.no_grad()
def written_by_textbook(student: nn.Module, features: RationaleFeatures, batch: int, most: int) -> dict[int, list[int]]:
    """Batches in the order of the file; the end token ends nothing, and what is behind it is cut off."""
    settings = GenerationConfig(
        max_new_tokens=most, do_sample=False, num_beams=1, pad_token_id=PAD, decoder_start_token_id=PAD
    )
    texts = {}
    own, student.generation_config.eos_token_id = student.generation_config.eos_token_id, None
    for rows in batched(np.arange(len(features)), batch):
        ids = padded(texts_of(features.predict, rows), PAD)
        tokens = student.generate(ids, attention_mask=ids.ne(PAD).long(), generation_config=settings)[:, 1:]
        texts |= dict(zip(rows.tolist(), map(cut, tokens.tolist()), strict=True))
    student.generation_config.eos_token_id = own
    return texts


def batched(rows: NDArray, size: int) -> Iterator[NDArray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def cut(tokens: Sequence[int]) -> list[int]:
    """Tokens before the end token."""
    return list(itertools.takewhile(lambda token: token != END, tokens))


def rates(seconds: dict[str, list[float]], examples: int) -> dict[str, list[float]]:
    """Examples a second."""
    return {name: [examples / one for one in found] for name, found in seconds.items()}


def features_of(arguments: argparse.Namespace) -> RationaleFeatures:
    return drawn_features(arguments) if arguments.folder is None else real_features(arguments)


def real_features(arguments: argparse.Namespace) -> RationaleFeatures:
    rows = for_training(read_split(arguments.folder, "cqa", "train"), "gt")
    with TemporaryDirectory() as cache:
        return rationale_features(rows, describe(arguments.tokenizer), cache=Path(cache))


def drawn_features(arguments: argparse.Namespace) -> RationaleFeatures:
    """Random ids, but for labels, which are all alike, to be learnt in a few steps."""
    draw = np.random.default_rng(0)

    def drawn(low: int, high: int, kinds: int) -> Tokens:
        lengths = draw.integers(low, high, arguments.rows).astype(np.int32)
        ids = draw.integers(2, 2 + kinds, int(lengths.sum())).astype(np.int32)
        ids[np.cumsum(lengths) - 1] = END
        return Tokens(ids, lengths, np.zeros(arguments.rows, np.bool_))

    kinds = arguments.vocabulary - 2
    inputs = drawn(*INPUT, kinds)
    return RationaleFeatures(inputs, inputs, drawn(*LABEL, 1), drawn(*RATIONALE, kinds))


def select(features: RationaleFeatures, rows: NDArray) -> RationaleFeatures:
    def of(tokens: Tokens) -> Tokens:
        return Tokens(torch.cat(texts_of(tokens, rows)).int().numpy(), tokens.lengths[rows], tokens.truncated[rows])

    return RationaleFeatures(*(of(getattr(features, name)) for name in ("predict", "explain", "labels", "rationales")))


if __name__ == "__main__":
    main()
