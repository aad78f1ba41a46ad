"""Fine-tuning in batches of like length against the textbook's fixed padding: training tokens a second.

Run `python tests/benchmarks/bench_tasks.py --file SST-2/train.tsv --tokenizer <folder>`, which takes the lengths of a
benchmark's real rows, or without a file, where lengths like those of SST-2 are drawn. Ours is what `train.py
objective=finetune` does with a step: the data module, the backbone, the backward pass, clipping, AdamW. The textbook
pads the same rows to 128 tokens and calls the model. They take turns step by step in one process; token ids and weights
are random. Dropout is on while speed is measured and off while the losses of both are compared.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from potstill.data.common.steps import BatchSettings
from potstill.data.common.tokenizers import describe
from potstill.data.tasks.datamodule import TaskDataModule, TaskSet, TaskStep
from potstill.data.tasks.features import Features, features_of
from potstill.data.tasks.readers import Layout, RowSource
from potstill.data.tasks.sources import DataFile
from potstill.models.backbone import backbone_of
from potstill.objectives.task import ModelReader, TaskObjective
from potstill.runtime.kernels import use_kernels
from potstill.runtime.process import prepare

TARGET = 1.5
PADDED = 128
SPECIAL_TOKENS = 5


def main() -> None:
    arguments = parse()
    prepare()
    use_kernels()
    torch.set_num_threads(arguments.threads)
    lengths = lengths_of(arguments)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.hidden // 32),
        intermediate_size=4 * arguments.hidden,
        max_position_embeddings=PADDED,
    )
    model = BertForSequenceClassification(config)
    sides = {"ours": Ours(model), "textbook": Textbook(copy.deepcopy(model))}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens, ratios = 0, []
    steps = steps_of(lengths, arguments)
    compared = next(steps)
    losses = [side.loss(compared).item() for side in sides.values()]
    for number in range(arguments.rounds):
        taken = {}
        batches = [next(steps) for _ in range(arguments.steps)]
        for name, side in list(sides.items())[:: 1 if number % 2 else -1]:
            begun = time.perf_counter()
            for batch in batches:
                side(batch)
            taken[name] = time.perf_counter() - begun
            seconds[name].append(taken[name])
        tokens += sum(batch.tokens for batch in batches)
        ratios.append(taken["textbook"] / taken["ours"])
    print(
        f"BERT of {arguments.layers} layers, width {arguments.hidden}, batch {arguments.batch}, rows of "
        f"{np.mean(lengths):.1f} tokens on average, {arguments.threads} threads"
    )
    for name, found in seconds.items():
        print(f"  {name:8s} {tokens / sum(found):8.0f} tokens/s, {arguments.rounds} x {arguments.steps} steps")
    print(
        f"  speed, ours / textbook: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"target {TARGET} or more"
    )
    gap = abs(losses[0] - losses[1]) / abs(losses[1])
    print(f"  losses {'agree' if gap < 1e-4 else 'DIFFER'}: {losses[0]:.6f} and {losses[1]:.6f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="rows with a column `sentence`")
    parser.add_argument("--tokenizer", help="folder of the tokenizer of the file's rows")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384, help="width; there is a head for every 32")
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


class Ours:
    """The step of `training/task.py`."""

    def __init__(self, model: BertForSequenceClassification):
        self.model, self.read = model.train(), ModelReader(backbone_of(model), "classification")
        self.objective = TaskObjective("classification")
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def __call__(self, step: TaskStep) -> None:
        denominators = self.objective.denominators(step)
        for micro in step.micro:
            self.objective(self.read, [], micro, denominators).loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def loss(self, step: TaskStep) -> torch.Tensor:
        self.model.eval()
        shares = [self.objective(self.read, [], micro, self.objective.denominators(step)).loss for micro in step.micro]
        self.model.train()
        return torch.stack(shares).sum()


class Textbook:
    """The same rows, padded to `PADDED` tokens."""

    def __init__(self, model: BertForSequenceClassification):
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def __call__(self, step: TaskStep) -> None:
        self._loss(step).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def loss(self, step: TaskStep) -> torch.Tensor:
        self.model.eval()
        found = self._loss(step)
        self.model.train()
        return found

    def _loss(self, step: TaskStep) -> torch.Tensor:
        def padded(name: str) -> torch.Tensor:
            return torch.cat(
                [nn.functional.pad(getattr(m, name), (0, PADDED - m.input_ids.shape[1])) for m in step.micro]
            )

        labels = torch.cat([micro.labels for micro in step.micro if micro.labels is not None])
        inputs = {name: padded(name) for name in ("input_ids", "attention_mask", "token_type_ids")}
        return self.model(**inputs, labels=labels).loss


def lengths_of(arguments: argparse.Namespace) -> NDArray[np.int32]:
    if arguments.file is None:
        drawn = np.random.default_rng(0).lognormal(2.2, 0.65, 20_000) + 4  # SST-2: 13 tokens on average
        return np.minimum(drawn, 66).astype(np.int32)
    rows = RowSource(DataFile(arguments.file.absolute()), labelled=False, layouts=(Layout(("sentence",), None),)).read()
    with TemporaryDirectory() as cache:
        features = features_of(rows, describe(arguments.tokenizer), max_length=PADDED, cache=Path(cache))
    return features.lengths


def steps_of(lengths: NDArray[np.int32], arguments: argparse.Namespace) -> Iterator[TaskStep]:
    """Steps as the data module gives them, epoch after epoch."""
    rng = np.random.default_rng(1)
    ids = rng.integers(SPECIAL_TOKENS, arguments.vocabulary, int(lengths.sum())).astype(np.int32)
    flat = Features(ids, np.zeros(len(ids), np.uint8), lengths, np.zeros(len(lengths), np.bool_))
    part = TaskSet(flat, rng.integers(0, 2, len(lengths)))
    data = TaskDataModule(
        part, {}, pad_id=0, token_types=True, settings=BatchSettings(seed=0, batch_size=arguments.batch, accumulate=1)
    )
    while True:
        for item in data.train_dataloader():
            yield data.on_after_batch_transfer(item, 0)


if __name__ == "__main__":
    main()
