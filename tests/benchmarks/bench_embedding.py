"""Distillation of a sentence encoder and encoding, ours against sentence-transformers: sentences a second.

Run `pip install 'potstill[bench]'`, then `python tests/benchmarks/bench_embedding.py [--file <text>]`; without a file
the texts are the docstrings of the installed libraries. Teacher (BERT) and student (half of its layers) have random
weights, mean pooling and a norm. Ours is what `train.py objective=embed` does: its data module, its objective,
clipping, AdamW. The peer is sentence-transformers' own trainer with MSELoss, whose labels are the teacher's vectors:
- live: steps with the teacher in them, against the peer's `encode` of as many sentences and steps with these vectors;
- cached: steps with given vectors on both sides;
- encoding: the vectors of as many sentences from their text, in batches of similar lengths on both sides.

The losses of both sides agree on the same sentences. Each has a process of its own, and they run in turns.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import told
from sides import asked, serve, started
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel

from potstill.config import TrainConfig, register
from potstill.config.typed import composed
from potstill.data.common.text_files import sentences
from potstill.data.common.tokenizers import train_wordpiece
from potstill.data.corpus.docstrings import Docstrings
from potstill.data.corpus.sentence_steps import SentenceDataModule
from potstill.data.corpus.sources import TextFiles, TextSource
from potstill.evaluation.encoders import token_ids
from potstill.losses import vector_mse
from potstill.methods.embedding.build import build_embedding_training
from potstill.methods.embedding.models import open_encoder
from potstill.models.sentence_folders import SentenceSettings, write_sentence_settings
from potstill.models.students import student_from_layers
from potstill.runtime.kernels import use_kernels
from potstill.runtime.process import prepare
from potstill.teacher_cache.vectors import FileVectors

TOLERANCE = 1e-3
TARGETS = {"live": 1.5, "cached": 2.5, "encoding": 1.0}
Work = Callable[[str, int], tuple[float, float]]
"""What a side does: `compare` the loss of the first sentences, or of `TARGETS`; seconds (or the loss), sentences."""


def main() -> None:
    """Print how far apart the losses are, then the speeds."""
    arguments = parse()
    if importlib.util.find_spec("sentence_transformers") is None:
        raise SystemExit("sentence-transformers is not installed: pip install 'potstill[bench]'")
    with tempfile.TemporaryDirectory(prefix="bench-embedding-") as folder:
        arguments.folder = Path(folder)
        lengths = write(arguments)
        print(
            f"BERT of {arguments.layers} layers -> {arguments.layers // 2}, width {arguments.hidden}, batch "
            f"{arguments.batch}, {len(lengths):,} sentences of {np.mean(lengths):.1f} words, {arguments.threads} "
            f"threads, {arguments.precision}",
            flush=True,
        )
        sides = {name: started(serve, make, arguments) for name, make in MAKERS.items()}
        losses = [asked(side, name, "compare", 0)[0] for name, side in sides.items()]
        for what, target in TARGETS.items():
            rates: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(-1, arguments.rounds):  # the first one warms up
                for name in list(sides)[:: 1 if number % 2 else -1]:
                    seconds, count = asked(sides[name], name, what, number + 1)[:2]
                    if number >= 0:
                        rates[name].append(count / seconds)
            told(f"sentence encoder, {what}, {arguments.precision}", rates, "sentences/s", target=target)
        for side in sides.values():
            side.send(None)
    gap = abs(losses[0] - losses[1]) / abs(losses[1])
    print(f"  losses {'agree' if gap < TOLERANCE else 'DIFFER'}: {losses[0]:.6f} and {losses[1]:.6f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="text, plain or gzip, whose lines are cut into sentences")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--layers", type=int, default=6, help="of the teacher; the student has half of them")
    parser.add_argument("--hidden", type=int, default=384, help="width; there is a head for every 32")
    parser.add_argument("--vocabulary", type=int, default=8000, help="of the tokenizer, which is trained on the text")
    parser.add_argument("--sentences", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=64, help="sentences of a step")
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def write(arguments: argparse.Namespace) -> list[int]:
    """Write sentences, and the folders of teacher and student; returns the number of words of each sentence."""
    folder = arguments.folder
    source: TextSource = Docstrings(None, None, folder)
    if arguments.file is not None:
        source = TextFiles((str(arguments.file.absolute()),), "line", "^</?doc", None, folder)
    lines = (text for batch in source.batches(2**16) for text in batch)
    texts = list(
        islice(dict.fromkeys(islice(filter(None, sentences(lines)), 4 * arguments.sentences)), arguments.sentences)
    )
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    own = TextFiles((str(folder / "texts.txt"),), "line", None, None, folder)
    tokenizer = AutoTokenizer.from_pretrained(train_wordpiece(own, arguments.vocabulary, folder))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.hidden // 32),
        intermediate_size=4 * arguments.hidden,
        pad_token_id=tokenizer.pad_token_id,
    )
    teacher = BertModel(config, add_pooling_layer=False)
    layers = [round(one) for one in np.linspace(0, arguments.layers - 1, arguments.layers // 2)]
    for name, model in (("teacher", teacher), ("student", student_from_layers(teacher, layers))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        write_sentence_settings(SentenceSettings("mean", True, max_length=128), folder / name, arguments.hidden)
    return [len(text.split()) for text in texts]


def ours(arguments: argparse.Namespace) -> Work:
    """What `objective=embed` builds, and its steps."""
    prepare()
    use_kernels()
    torch.set_num_threads(arguments.threads)
    register()
    folder, half = arguments.folder, arguments.precision == "bf16"
    overrides = {
        "objective": "embed", "teacher.model": folder / "teacher", "student": "pretrained",
        "student.model": folder / "student", "data.train_files": f"[{folder}/texts.txt]", "data.unit": "line",
        "data.eval_share": 0.001, "data.batch_size": arguments.batch, "data.cache": folder / "cache", "logger": "csv",
        "strategy": "cpu_bf16" if half else "cpu", "data.num_proc": 1, "trainer.max_steps": 1000,
        "trainer.max_epochs": "null",
    }  # fmt: skip
    training = build_embedding_training(composed("train", [f"{k}={v}" for k, v in overrides.items()], TrainConfig))
    module, data, student = training.module, training.data, training.module.student
    objective, optimizer = module.objective, torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    side, _ = open_encoder("model", str(folder / "student"))
    texts = texts_of(arguments)
    given = FileVectors([constant(arguments, len(texts))])
    with_vectors = SentenceDataModule(
        data.train, data.evaluation, data.pad_id, data.teacher_pad_id, data.settings, (given, None)
    )

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=half)

    def steps(source: SentenceDataModule) -> int:
        done = 0
        for item in islice(chain.from_iterable(repeat(source.train_dataloader())), arguments.steps):
            step = source.on_after_batch_transfer(item, 0)
            denominators = objective.denominators(step)
            for micro in step.micro:
                with autocast():
                    share = module.share_of(objective, micro, denominators, "")
                share.loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += step.sequences
        return done

    def work(what: str, number: int) -> tuple[float, float]:
        if what == "compare":
            ids = token_ids(texts[: arguments.batch], side.vocabulary, side.settings, prompt="", max_length=128)
            teacher, _ = open_encoder("model", str(folder / "teacher"))
            one, other = (own.encoder.encode(ids, own.vocabulary.pad_id) for own in (side, teacher))
            return float(vector_mse(one, other)) / arguments.hidden, 0
        begun = time.perf_counter()
        if what == "encoding":
            chosen = texts[: arguments.steps * arguments.batch]
            ids = token_ids(chosen, side.vocabulary, side.settings, prompt="", max_length=128)
            with autocast():
                side.encoder.encode(ids, side.vocabulary.pad_id, arguments.batch)
            return time.perf_counter() - begun, len(chosen)
        done = steps(with_vectors if what == "cached" else data)
        return time.perf_counter() - begun, done

    return work


def sentence_transformers(arguments: argparse.Namespace) -> Work:
    """The package's own trainer and `encode`."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MSELoss

    torch.set_num_threads(arguments.threads)
    folder, half = arguments.folder, arguments.precision == "bf16"
    teacher, student = (SentenceTransformer(str(folder / name), device="cpu") for name in ("teacher", "student"))
    texts, count = texts_of(arguments), arguments.steps * arguments.batch
    loss = MSELoss(student)

    def encode(model: SentenceTransformer, chosen: list[str]) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return model.encode(chosen, batch_size=arguments.batch, show_progress_bar=False)

    def trained(chosen: list[str], labels: np.ndarray, seed: int) -> None:
        data = Dataset.from_dict({"sentence": chosen, "label": labels.tolist()})
        settings = SentenceTransformerTrainingArguments(
            str(folder / "peer"), use_cpu=True, bf16=half, max_steps=arguments.steps, learning_rate=1e-5, seed=seed,
            per_device_train_batch_size=arguments.batch, report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True,
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(student, settings, train_dataset=data, loss=loss)
        begun = time.perf_counter()
        trainer.train()
        seconds[0] += time.perf_counter() - begun

    seconds = [0.0]

    def work(what: str, number: int) -> tuple[float, float]:
        first = number * count % max(len(texts) - count, 1)
        chosen = texts[first : first + count]
        if what == "compare":
            student.eval()
            vectors = [model.encode(texts[: arguments.batch]) for model in (student, teacher)]
            return float(np.square(vectors[0] - vectors[1]).mean()), 0
        begun = time.perf_counter()
        if what == "encoding":
            encode(student, texts[:count])
            return time.perf_counter() - begun, count
        labels = encode(teacher, chosen) if what == "live" else constant(arguments, count)
        seconds[0] = time.perf_counter() - begun
        trained(chosen, labels, number)
        return seconds[0], count

    return work


MAKERS: dict[str, Any] = {"ours": ours, "sentence-transformers": sentence_transformers}


def constant(arguments: argparse.Namespace, count: int) -> np.ndarray:
    """Vectors of length 1, in place of a teacher's."""
    return np.full((count, arguments.hidden), arguments.hidden**-0.5, np.float32)


def texts_of(arguments: argparse.Namespace) -> list[str]:
    return (arguments.folder / "texts.txt").read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    main()
