"""What the Lightning loop costs next to a bare Python loop of the same step.

Run `python tests/benchmarks/bench_loop.py`. One model is trained by `lightning.Trainer`, built as `train.py` builds
it (metrics.csv, Throughput, LastCheckpoint), its copy by a plain loop: load, mask, forward, backward, clip, optimizer,
schedule. They take turns step by step in one process, on the same batches, since a machine's own speed varies; a step
lasts from the end of the step before to its own end, loading included. Both end in the same weights. Ours should
be at most 3 % slower.
"""

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from results import told
from torch import nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from potstill.config import TrainConfig, register
from potstill.config.typed import composed
from potstill.data.common.steps import BatchSettings
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.corpus.datamodule import CorpusDataModule
from potstill.data.corpus.store import Corpus, StoreWriter, TokenStore
from potstill.methods.common.models import build_objective, build_optimization, build_optimizer, build_schedule
from potstill.models.backbone import backbone_of
from potstill.models.specs import default_layers
from potstill.models.students import student_from_layers
from potstill.runtime.process import quiet
from potstill.training.language import LanguageDistillation
from potstill.training.trainer import build_callbacks, build_loggers, build_trainer

TARGET = 0.97
WARMUP = 3  # steps at the start of a round that are not counted
SPECIAL_TOKENS = 5


def main() -> None:
    arguments = parse()
    quiet()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as at:
        run(arguments, Path(at))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="of the teacher; the student has half of them")
    parser.add_argument("--hidden", type=int, default=256, help="width; there is a head for every 64, or one")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=8, help="sequences of a micro-batch, of 32 to 64 tokens")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--steps", type=int, default=60, help="of a round that are counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bar", action="store_true", help="with the progress bar")
    return parser.parse_args()


def run(arguments: argparse.Namespace, root: Path) -> None:
    """Rounds of a fit each; prints seconds a step, their ratio, and whether both learnt the same."""
    config = configuration(arguments, root)
    vocabulary = vocabulary_of(arguments.vocabulary)
    corpus = corpus_of(arguments, root / "store")
    rates: dict[str, list[float]] = {"lightning": [], "bare": []}
    equal = True
    for number in range(arguments.rounds):
        teacher, student = models(arguments)
        bare = BareLoop(config, teacher, copy.deepcopy(student), data_of(config, corpus, vocabulary))
        module = module_of(config, teacher, student)
        folder = root / str(number)
        callbacks, _ = build_callbacks(config, folder, arguments.bar)
        turns = Turns(bare)
        loggers = build_loggers(config, folder, "bench")
        trainer = build_trainer(config.trainer, folder, callbacks=[*callbacks, turns], loggers=loggers, validate=False)
        trainer.fit(module, datamodule=data_of(config, corpus, vocabulary))
        for name, found in turns.seconds.items():
            rates[name].append(1 / statistics.fmean(found[WARMUP:]))
        equal = equal and turns.losses["lightning"] == turns.losses["bare"] and same(student, bare.student)
    print(
        f"BERT of {arguments.layers} layers -> {arguments.layers // 2}, width {arguments.hidden}, vocabulary "
        f"{arguments.vocabulary:,}, batch {arguments.accumulate} x {arguments.batch}, {arguments.threads} threads"
    )
    told("the loop", rates, "steps/s", target=TARGET)
    print(f"  losses and weights {'agree: equal to the bit' if equal else 'DIFFER'}")


class BareLoop:
    """The step of `LanguageDistillation` without Lightning: each call is one optimizer step."""

    def __init__(self, config: TrainConfig, teacher: PreTrainedModel, student: PreTrainedModel, data: CorpusDataModule):
        self.student, self.data = student, data
        self.clip = config.trainer.gradient_clip_val
        self.teacher_backbone, self.student_backbone = backbone_of(teacher), backbone_of(student)
        self.objective = build_objective(config.objective, backbone_of(student), backbone_of(teacher), seed=config.seed)
        self.optimizer = build_optimizer(config.optimizer, student)
        self.schedule = build_schedule(config.schedule, self.optimizer, config.trainer.max_steps)
        self.batches: Iterator[Any] = iter(())

    def restart(self) -> None:
        """Begin the epoch."""
        self.student.train()
        self.batches = iter(self.data.train_dataloader())

    def __call__(self) -> float:
        batch = self.data.on_after_batch_transfer(next(self.batches), 0)
        torch.manual_seed(batch.seed)
        denominators = self.objective.denominators(batch)
        loss = torch.zeros(())
        for micro in batch.micro:
            share = self.objective(self.student_backbone, self.teacher_backbone, micro, denominators)
            share.loss.backward()
            loss += share.loss.detach()
        nn.utils.clip_grad_norm_(self.student.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return float(loss)


class Turns(Callback):
    """After each step of Lightning's, one of the bare loop; as the last callback it leaves the others their time."""

    def __init__(self, bare: BareLoop):
        self.bare = bare
        self.seconds: dict[str, list[float]] = {"lightning": [], "bare": []}
        self.losses: dict[str, list[float]] = {"lightning": [], "bare": []}
        self._since = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.bare.restart()
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        begun = time.perf_counter()
        self.seconds["lightning"].append(begun - self._since)
        self.losses["lightning"].append(trainer.lightning_module.last_step["train/loss"])
        begun = time.perf_counter()
        self.losses["bare"].append(self.bare())
        self._since = time.perf_counter()
        self.seconds["bare"].append(self._since - begun)


def configuration(arguments: argparse.Namespace, root: Path) -> TrainConfig:
    """What `python train.py` with these overrides composes."""
    register()
    overrides = {
        "logger": "csv",
        "data.batch_size": arguments.batch,
        "trainer.accumulate_grad_batches": arguments.accumulate,
        "trainer.max_steps": arguments.steps + WARMUP,
        "trainer.max_epochs": "null",
        "trainer.enable_progress_bar": str(arguments.bar).lower(),
        "data.cache": root / "cache",
    }
    return composed("train", [f"{key}={value}" for key, value in overrides.items()], TrainConfig)


def module_of(config: TrainConfig, teacher: PreTrainedModel, student: PreTrainedModel) -> LanguageDistillation:
    return LanguageDistillation(
        student,
        teacher,
        build_objective(config.objective, backbone_of(student), backbone_of(teacher), seed=config.seed),
        build_optimization(config, student),
    )


def data_of(config: TrainConfig, corpus: Corpus, vocabulary: Vocabulary) -> CorpusDataModule:
    settings = BatchSettings(
        seed=config.seed, batch_size=config.data.batch_size, accumulate=config.trainer.accumulate_grad_batches
    )
    return CorpusDataModule(corpus, None, vocabulary, "masked", settings)


def vocabulary_of(size: int) -> Vocabulary:
    return Vocabulary(
        path="",
        size=size,
        start_id=None,
        end_id=None,
        pad_id=0,
        mask_id=SPECIAL_TOKENS - 1,
        unk_id=1,
        special_ids=tuple(range(SPECIAL_TOKENS)),
        max_length=None,
        digest="",
    )


def corpus_of(arguments: argparse.Namespace, folder: Path) -> Corpus:
    """Random sequences for one round: no step is the first of an epoch but the first."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    sequences = (arguments.steps + WARMUP) * arguments.batch * arguments.accumulate
    lengths = rng.integers(32, 65, sequences, dtype=np.int32)
    writer = StoreWriter(folder, arguments.vocabulary)
    writer.add(rng.integers(SPECIAL_TOKENS, arguments.vocabulary, lengths.sum()), lengths)
    writer.close({"random": 0}, "none", {}, {})
    return Corpus([TokenStore.open(folder)])


def models(arguments: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedModel]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.hidden // 64),
        intermediate_size=4 * arguments.hidden,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    teacher = BertForMaskedLM(config).requires_grad_(False).eval()
    return teacher, student_from_layers(teacher, default_layers(arguments.layers))


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = itertools.zip_longest(one.state_dict().items(), other.state_dict().items())
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


if __name__ == "__main__":
    main()
