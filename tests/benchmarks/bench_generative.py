"""A step of generative distillation, ours against the textbook's and TRL's trainers: tokens a second, peak memory.

Run `python tests/benchmarks/bench_generative.py` (TRL: `pip install 'potstill[bench]'`, then `--peer gkd` for its
GKDTrainer or `--peer distillation` for its DistillationTrainer). Teacher and student are decoders of Llama's
architecture with random weights; the loss is JSD(0.5) at T = 1 over completions. Off-policy steps have given rows, of
which half is the prompt; the losses of all sides agree on them. In on-policy steps the student completes the prompts
first, at temperature 1; one token in `--tokens` ends a completion, so that completions differ in length. Tokens are
those of completions. Each side has a process of its own, ours prepared as `train.py` prepares it; they run in turns,
since a machine's own speed varies. The optimizer's step is left out.

The textbook makes all logits of both models and generates with transformers. A step of TRL is its trainer's
`training_step`, which generates with transformers, too. GKDTrainer computes the loss from all logits,
DistillationTrainer in chunks. The latter samples every completion; off-policy steps hand it the given ones instead.
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sides import Step, memory, shaped_parser, speed
from textbook import gkd_step, sampled_completions
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from potstill.data.common.ragged import starts_of
from potstill.data.corpus.datamodule import MicroBatch, StepBatch, pad
from potstill.data.corpus.masking import IGNORED, next_tokens
from potstill.losses.vocabulary import JSD
from potstill.models.backbone import backbone_of
from potstill.models.generation import Sampling, Tokens
from potstill.models.preparing import halve_products, set_checkpointing
from potstill.objectives.language import LanguageObjective
from potstill.runtime.kernels import use_kernels
from potstill.runtime.process import prepare
from potstill.training.generative import Generation, sample

FIRST = 5  # ids below are never drawn; the first pads
BETA = 0.5
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
Side = Callable[[MicroBatch, int, bool], tuple[float, int]]
"""A step on rows, with a seed, on-policy or not: its loss, and the tokens of the completions."""


def main() -> None:
    """Print memory and speed of steps with given completions, then the speed of steps with sampled ones."""
    arguments = parse()
    if arguments.peer != "textbook" and importlib.util.find_spec("trl") is None:
        raise SystemExit("trl is not installed: pip install 'potstill[bench]'")
    print(
        f"JSD({BETA}): Llama of {arguments.layers} layers -> {arguments.layers // 2}, width {arguments.hidden}, "
        f"vocabulary {arguments.vocabulary:,}, batch {arguments.batch}, {arguments.threads} threads, "
        f"{arguments.precision}",
        flush=True,
    )
    names = {"ours": ours, arguments.peer: PEERS[arguments.peer]}
    tolerance = TOLERANCE[arguments.precision]
    off = {name: partial(setup, make, False) for name, make in names.items()}
    speed(off, arguments, tolerance, f"gkd off-policy, {arguments.precision}", memory(off, arguments))
    sampled = {name: partial(setup, make, True) for name, make in names.items()}
    speed(sampled, arguments, tolerance, f"gkd on-policy, {arguments.precision}")


def parse() -> argparse.Namespace:
    parser = shaped_parser(__doc__, layers="of the teacher; the student has half of them")
    parser.set_defaults(vocabulary=49_152, hidden=576)
    parser.add_argument("--peer", choices=tuple(PEERS), default="textbook")
    parser.add_argument("--precision", choices=tuple(TOLERANCE), default="fp32")
    parser.add_argument("--written", type=int, default=64, help="most tokens of a completion")
    parser.add_argument("--tokens", type=int, default=50, help="one token of so many ends a completion")
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of the processor instead of the clock, for a busy machine"
    )
    parser.add_argument(
        "--checkpointing", choices=("none", "selective", "full"), default="none", help="student.checkpointing of ours"
    )
    return parser.parse_args()


def setup(make: Callable[[argparse.Namespace], Side], on_policy: bool, arguments: argparse.Namespace) -> Step:
    """A side's step with its clock."""
    side, clock = make(arguments), time.process_time if arguments.cpu_time else time.perf_counter

    def step(length: int, seed: int, training: bool) -> tuple[float, dict[str, float], int]:
        rows = batch(arguments, length, seed)
        gc.collect()
        begun = clock()
        loss, tokens = side(rows, seed, on_policy and training)
        return clock() - begun, {"total": loss}, tokens

    return step


def ours(arguments: argparse.Namespace) -> Side:
    """What `objective=gkd` does with a step."""
    prepare()
    use_kernels()
    teacher, student = models(arguments)
    if arguments.precision == "bf16":
        halve_products(teacher, torch.bfloat16)
    if arguments.checkpointing != "none":
        set_checkpointing(student, arguments.checkpointing)
    objective = LanguageObjective("causal", {"ce": 1.0}, positions="masked", divergence=JSD, beta=BETA)
    ends = Tokens(arguments.vocabulary, ends_of(arguments), 0)
    generation = Generation(Sampling(max_new_tokens=arguments.written), ends, decode=str)
    own, theirs = backbone_of(student), backbone_of(teacher)

    def side(rows: MicroBatch, seed: int, on_policy: bool) -> tuple[float, int]:
        student.zero_grad(set_to_none=True)
        with autocast(arguments):
            (part,) = sample(own, [rows], generation, seed)[0] if on_policy else [rows]
            tokens = int((part.labels != IGNORED).sum())
            whole = StepBatch([part], len(part.labels), tokens)
            share = objective(own, theirs, part, objective.denominators(whole))
        share.loss.backward()
        return float(share.loss.detach()), tokens

    return side


def textbook(arguments: argparse.Namespace) -> Side:
    """All logits, and generation of transformers."""
    teacher, student = models(arguments)
    torch.set_num_threads(arguments.threads)
    ends = sorted(ends_of(arguments))

    def side(rows: MicroBatch, seed: int, on_policy: bool) -> tuple[float, int]:
        student.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        inputs = plain(rows)
        with autocast(arguments):
            if on_policy:
                inputs = sampled_completions(student, *prompts_of(rows), arguments.written, ends, pad=0)
            loss = gkd_step(teacher, student, *inputs, BETA)
        return float(loss.detach()), int((inputs[2] != IGNORED).sum())

    return side


def trainer_of(
    arguments: argparse.Namespace, kind: Callable[..., Any], config: Callable[..., Any], row: dict[str, Any], **own: Any
) -> tuple[Any, LlamaForCausalLM]:
    """A trainer of TRL with the models of the benchmark, and the student."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    teacher, student = models(arguments)
    torch.set_num_threads(arguments.threads)
    student.generation_config.eos_token_id = sorted(ends_of(arguments))
    folder = tempfile.TemporaryDirectory()
    content = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"<pad>": 0, "a": 1}, "unk_token": "<pad>"}}
    words = Path(folder.name) / "tokenizer.json"
    words.write_text(json.dumps(content | {"added_tokens": [], "pre_tokenizer": None, "normalizer": None}))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(words), pad_token="<pad>", eos_token="a", padding_side="left", chat_template="a"
    )
    settings = config(
        output_dir=folder.name, use_cpu=True, report_to=[], beta=BETA, temperature=1.0,
        bf16=arguments.precision == "bf16", per_device_train_batch_size=arguments.batch, gradient_checkpointing=False,
        **own,
    )  # fmt: skip
    data = Dataset.from_list([row] * arguments.batch)
    trainer = kind(student, teacher, args=settings, train_dataset=data, processing_class=tokenizer)
    trainer.folder = folder  # it lives as long
    trainer.current_gradient_accumulation_steps = 1  # which its loop sets
    return trainer, student


def gkd(arguments: argparse.Namespace) -> Side:
    """The step of TRL's GKDTrainer on a batch, as its collator makes it."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    own = {"lmbda": 0.0, "max_new_tokens": arguments.written}
    trainer, student = trainer_of(arguments, GKDTrainer, GKDConfig, {"messages": turns}, **own)

    def side(rows: MicroBatch, seed: int, on_policy: bool) -> tuple[float, int]:
        student.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        input_ids, attention_mask, labels = plain(rows)
        prompts, prompt_mask = prompts_of(rows)
        inputs = {
            "input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "prompts": prompts,
            "prompt_attention_mask": prompt_mask,
        }  # fmt: skip
        trainer.lmbda = 1.0 if on_policy else -1.0
        loss = trainer.training_step(student, inputs)
        return float(loss), int((inputs["labels"] != IGNORED).sum())

    return side


def distillation(arguments: argparse.Namespace) -> Side:
    """The step of TRL's DistillationTrainer on prompts."""
    from trl import DistillationConfig, DistillationTrainer

    own = {"max_completion_length": arguments.written}
    trainer, student = trainer_of(arguments, DistillationTrainer, DistillationConfig, {"prompt": "a"}, **own)
    generate = trainer._generate_single_turn

    def side(rows: MicroBatch, seed: int, on_policy: bool) -> tuple[float, int]:
        student.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        assert rows.prompts is not None
        whole = [ids[mask.bool()].tolist() for ids, mask in zip(rows.input_ids, rows.attention_mask, strict=True)]
        prompts = [own[:end] for own, end in zip(whole, rows.prompts.tolist(), strict=True)]
        given = [own[end:] for own, end in zip(whole, rows.prompts.tolist(), strict=True)]
        written: list[list[int]] = []

        def completions(*inputs: Any, **options: Any) -> list[list[int]]:
            written[:] = generate(*inputs, **options) if on_policy else given
            return written

        trainer._tokenize_prompts = lambda _: (prompts, None, {})
        trainer._generate_single_turn = completions
        loss = trainer.training_step(student, [{"prompt": "a"} for _ in prompts], None)
        return float(loss), sum(map(len, written))

    return side


PEERS = {"textbook": textbook, "gkd": gkd, "distillation": distillation}


def autocast(arguments: argparse.Namespace) -> contextlib.AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16) if arguments.precision == "bf16" else contextlib.nullcontext()


def ends_of(arguments: argparse.Namespace) -> frozenset[int]:
    """The tokens that end a completion."""
    return frozenset(range(FIRST, arguments.vocabulary, arguments.tokens))


def models(arguments: argparse.Namespace) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """Teacher and student, the same in all processes."""
    torch.set_num_threads(arguments.threads)
    made = []
    for seed, layers in enumerate((arguments.layers, arguments.layers // 2)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=arguments.vocabulary,
            hidden_size=arguments.hidden,
            num_hidden_layers=layers,
            num_attention_heads=max(1, arguments.hidden // 64),
            num_key_value_heads=max(1, arguments.hidden // 64),
            intermediate_size=4 * arguments.hidden,
            tie_word_embeddings=True,
            initializer_range=0.04,
            pad_token_id=0,
            eos_token_id=None,
        )
        made.append(LlamaForCausalLM(config))
    return made[0].requires_grad_(False).eval(), made[1].train()


def batch(arguments: argparse.Namespace, longest: int, seed: int) -> MicroBatch:
    """Random rows, the shortest a quarter shorter than the longest; half of a row is its prompt."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(max(4, longest - longest // 4), longest, arguments.batch, endpoint=True)
    lengths[0] = longest
    ids = torch.from_numpy(rng.integers(FIRST, arguments.vocabulary, lengths.sum()))
    labels = next_tokens(ids, torch.from_numpy(np.cumsum(lengths) - 1))
    prompts, starts = lengths // 2, starts_of(lengths)
    for start, prompt in zip(starts, prompts, strict=True):
        labels[start : start + prompt - 1] = IGNORED
    made = pad(ids, labels, lengths, starts, 0)
    made.sequences, made.prompts = np.arange(arguments.batch), prompts
    return made


def plain(rows: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels as transformers has them: the label of a token is the token itself."""
    labels = torch.full_like(rows.input_ids, IGNORED)
    labels.view(-1)[rows.positions] = rows.labels
    return rows.input_ids, rows.attention_mask, torch.nn.functional.pad(labels[:, :-1], (1, 0), value=IGNORED)


def prompts_of(rows: MicroBatch) -> tuple[Tensor, Tensor]:
    """The prompts, padded on the left, and their mask."""
    assert rows.prompts is not None
    width = int(rows.prompts.max())
    ids, mask = torch.zeros(len(rows.prompts), width, dtype=torch.long), torch.zeros(len(rows.prompts), width).long()
    for row, prompt in enumerate(rows.prompts.tolist()):
        ids[row, width - prompt :] = rows.input_ids[row, :prompt]
        mask[row, width - prompt :] = 1
    return ids, mask


if __name__ == "__main__":
    main()
