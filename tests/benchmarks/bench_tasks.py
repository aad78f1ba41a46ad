"""Fine-tuning and evaluation of a classifier, ours against Hugging Face's Trainer: tokens a second.

Run `python tests/benchmarks/bench_tasks.py --file SST-2/train.tsv --tokenizer <folder>`, which takes the lengths of a
benchmark's real rows, or without a file, where lengths like those of SST-2 are drawn. Ours is what `train.py
objective=finetune` does: the data module, the backbone, the backward pass, clipping, AdamW, and in an evaluation the
forward pass over batches of similar lengths. The Trainer groups rows by length, too, pads a batch to its longest row,
and calls the model. Each has a process of its own, and they run in turns; token ids and weights are random. A
round is so many steps with all that surrounds them, or an evaluation of so many rows. Tokens are those of the rows,
without padding. Dropout is on while speed is measured and off while the losses of the same rows are compared.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from results import told
from sides import asked, serve, started
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from potstill.data.common.ragged import starts_of
from potstill.data.common.steps import BatchSettings
from potstill.data.common.tokenizers import describe
from potstill.data.tasks.datamodule import TaskBatch, TaskDataModule, TaskSet, TaskStep
from potstill.data.tasks.features import Features, features_of
from potstill.data.tasks.readers import Layout, RowSource
from potstill.data.tasks.sources import DataFile
from potstill.models.backbone import backbone_of
from potstill.objectives.task import ModelReader, TaskObjective
from potstill.runtime.kernels import use_kernels
from potstill.runtime.process import prepare

TARGET = 1.5
LONGEST = 128
SPECIAL_TOKENS = 5
TOLERANCE = 1e-4
Work = Callable[[str, int], tuple[float, float]]
"""What a side does: `compare` the loss of the first rows, `train` or `evaluate`; seconds or the loss, and tokens."""


def main() -> None:
    """Print how far apart the losses are, then the speed of training and of evaluation."""
    arguments = parse()
    print(
        f"BERT of {arguments.layers} layers, width {arguments.hidden}, batch {arguments.batch}, rows of "
        f"{np.mean(lengths_of(arguments)):.1f} tokens on average, {arguments.threads} threads",
        flush=True,
    )
    sides = {name: started(serve, partial(setup, make), arguments) for name, make in MAKERS.items()}
    losses = [asked(side, name, "compare", 0)[0] for name, side in sides.items()]
    for what, target in (("train", TARGET), ("evaluate", None)):
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(-1, arguments.rounds):  # the first one warms up
            for name in list(sides)[:: 1 if number % 2 else -1]:
                seconds, tokens = asked(sides[name], name, what, number + 1)[:2]
                if number >= 0:
                    rates[name].append(tokens / seconds)
        told({"train": "fine-tuning", "evaluate": "evaluation of a task"}[what], rates, target=target)
    for side in sides.values():
        side.send(None)
    gap = abs(losses[0] - losses[1]) / abs(losses[1])
    print(f"  losses {'agree' if gap < TOLERANCE else 'DIFFER'}: {losses[0]:.6f} and {losses[1]:.6f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="rows with a column `sentence`")
    parser.add_argument("--tokenizer", help="folder of the tokenizer of the file's rows")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384, help="width; there is a head for every 32")
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12, help="of a round")
    parser.add_argument("--evaluated", type=int, default=872, help="rows of an evaluation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def setup(make: Callable[[argparse.Namespace], Work], arguments: argparse.Namespace) -> Callable[..., Any]:
    """A side in its process."""
    return make(arguments)


def ours(arguments: argparse.Namespace) -> Work:
    """The step of `training/task.py`, and its evaluation."""
    prepare()
    use_kernels()
    model, rows = model_of(arguments), rows_of(arguments)
    read, objective = ModelReader(backbone_of(model), "classification"), TaskObjective("classification")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    settings = BatchSettings(seed=0, batch_size=arguments.batch, accumulate=1, eval_batch_size=arguments.batch)
    evaluated = TaskSet(first(rows.features, arguments.evaluated), np.asarray(rows.labels)[: arguments.evaluated])
    data = TaskDataModule(rows, {"": evaluated}, pad_id=0, token_types=True, settings=settings)

    def work(what: str, number: int) -> tuple[float, float]:
        if what == "compare":
            model.eval()
            batch = padded(rows, range(arguments.batch))
            micro = TaskBatch(*batch.values(), torch.arange(arguments.batch))
            length = int(batch["attention_mask"].sum())
            step = TaskStep([micro], arguments.batch, length, 0, sequences=arguments.batch, pairs=length)
            return float(objective(read, [], micro, objective.denominators(step)).loss.detach()), 0
        model.train(what == "train")
        begun, tokens = time.perf_counter(), 0
        if what == "train":
            for item in islice(chain.from_iterable(repeat(data.train_dataloader())), arguments.steps):
                step = data.on_after_batch_transfer(item, 0)
                denominators = objective.denominators(step)
                for micro in step.micro:
                    objective(read, [], micro, denominators).loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                tokens += step.tokens
        else:
            with torch.no_grad():
                for item in data.val_dataloader()[0]:
                    step = data.on_after_batch_transfer(item, 0)
                    for micro in step.micro:
                        objective(read, [], micro, objective.denominators(step))
                    tokens += step.tokens
        return time.perf_counter() - begun, tokens

    return work


def trainer(arguments: argparse.Namespace) -> Work:
    """Hugging Face's Trainer."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    torch.set_num_threads(arguments.threads)
    model, rows = model_of(arguments), rows_of(arguments)
    folder, seen = tempfile.TemporaryDirectory(), [0]

    def collate(own: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        seen[0] += sum(len(row["input_ids"]) for row in own)
        return collated([row["input_ids"] for row in own], [row["labels"] for row in own])

    starts = starts_of(rows.features.lengths.astype(np.int64))
    ids = np.split(rows.features.ids, starts[1:])
    columns = {"input_ids": [one.tolist() for one in ids], "labels": np.asarray(rows.labels).tolist()}
    whole = Dataset.from_dict(columns | {"length": rows.features.lengths.tolist()})
    peer = Trainer(
        model,
        TrainingArguments(
            folder.name, use_cpu=True, max_steps=arguments.steps, per_device_train_batch_size=arguments.batch,
            per_device_eval_batch_size=arguments.batch, train_sampling_strategy="group_by_length", learning_rate=1e-5,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        ),
        data_collator=collate,
        train_dataset=whole,
        eval_dataset=whole.select(range(min(arguments.evaluated, len(whole)))),
    )  # fmt: skip
    peer.folder = folder  # it lives as long

    def work(what: str, number: int) -> tuple[float, float]:
        if what == "compare":
            model.eval()
            with torch.no_grad():
                return float(model(**padded(rows, range(arguments.batch))).loss), 0
        seen[0], begun = 0, time.perf_counter()
        if what == "train":
            peer.args.seed = number
            peer.train()
        else:
            peer.evaluate()
        return time.perf_counter() - begun, seen[0]

    return work


MAKERS = {"ours": ours, "trainer": trainer}


def model_of(arguments: argparse.Namespace) -> BertForSequenceClassification:
    """Random weights, the same in both processes."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.hidden // 32),
        intermediate_size=4 * arguments.hidden,
        max_position_embeddings=LONGEST,
    )
    return BertForSequenceClassification(config)


def rows_of(arguments: argparse.Namespace) -> TaskSet:
    """Random tokens and labels in rows of real lengths."""
    rng, lengths = np.random.default_rng(1), lengths_of(arguments)
    ids = rng.integers(SPECIAL_TOKENS, arguments.vocabulary, int(lengths.sum())).astype(np.int32)
    flat = Features(ids, np.zeros(len(ids), np.uint8), lengths, np.zeros(len(lengths), np.bool_))
    return TaskSet(flat, rng.integers(0, 2, len(lengths)))


def first(features: Features, count: int) -> Features:
    """The first rows."""
    lengths = features.lengths[:count]
    tokens = int(lengths.sum())
    return Features(features.ids[:tokens], features.types[:tokens], lengths, features.truncated[:count])


def padded(rows: TaskSet, chosen: Sequence[int]) -> dict[str, Tensor]:
    """Inputs and labels of some rows."""
    starts = starts_of(rows.features.lengths.astype(np.int64))
    ids = [rows.features.ids[starts[row] : starts[row] + rows.features.lengths[row]].tolist() for row in chosen]
    return collated(ids, np.asarray(rows.labels)[list(chosen)].tolist())


def collated(ids: Sequence[list[int]], labels: Sequence[int]) -> dict[str, Tensor]:
    """A batch as the tokenizer's collator pads it."""
    longest = max(map(len, ids))
    made = torch.tensor([own + [0] * (longest - len(own)) for own in ids])
    mask = torch.tensor([[1] * len(own) + [0] * (longest - len(own)) for own in ids])
    types = torch.zeros_like(made)
    return {"input_ids": made, "attention_mask": mask, "token_type_ids": types, "labels": torch.tensor(labels)}


def lengths_of(arguments: argparse.Namespace) -> NDArray[np.int32]:
    if arguments.file is None:
        drawn = np.random.default_rng(0).lognormal(2.2, 0.65, 20_000) + 4  # SST-2: 13 tokens on average
        return np.minimum(drawn, 66).astype(np.int32)
    rows = RowSource(DataFile(arguments.file.absolute()), labelled=False, layouts=(Layout(("sentence",), None),)).read()
    with tempfile.TemporaryDirectory() as cache:
        features = features_of(rows, describe(arguments.tokenizer), max_length=LONGEST, cache=Path(cache))
    return features.lengths


if __name__ == "__main__":
    main()
