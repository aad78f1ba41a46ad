"""What sparse targets cost in bytes, and how far their loss and gradient are from the whole distribution's.

Run `python tests/benchmarks/bench_sparse.py`. The teacher is made: logits that fall with the logarithm of a token's
rank, as words do (Zipf), and a context that moves them; the student is the teacher with noise. A row of the table is a
form of store and a temperature; its figures are relative to the divergence of the whole vocabulary, and to its
gradient in the student's hidden states:

- bytes: of a token in the store, everything counted.
- loss bias, loss std: of the mean over rows, and from draw to draw in a row (root mean square over rows).
- gradient bias, cosine: of the mean gradient of a row, its distance from the exact one and their cosine (of all rows
  as one vector). Of drawn forms that is what is left after so many draws, and goes to 0 and 1 with more.
- gradient std: from draw to draw. Over the N rows of a step it falls with the root of N; a bias stays.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from potstill.data.common.store import Field, Gathered
from potstill.losses.sparse import SampledRows, TopRows
from potstill.losses.vocabulary import VocabularyLosses, vocabulary_losses
from potstill.teacher_cache.formats import SampledFormat, TopFormat

TOP = (8, 16, 64, 256)
SAMPLES = (12, 25, 50)
TEMPERATURES = (1.0, 2.0)


@dataclass
class Setting:
    """Teacher and student: hidden states (rows, width) before one projection."""

    teacher: Tensor
    student: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def teacher_logits(self) -> Tensor:
        """(rows, vocab)."""
        return self.teacher @ self.weight.t() + self.bias


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--draws", type=int, default=20, help="stores that are drawn of each form")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setting = make(arguments.rows, arguments.vocabulary, arguments.hidden)
    describe(setting)
    print(f"{'':36s}{'loss':>18s}{'gradient':>26s}")
    print(f"{'form':26s}{'T':>3s}{'bytes':>7s}{'bias':>10s}{'std':>8s}{'bias':>10s}{'cosine':>8s}{'std':>8s}")
    for temperature in TEMPERATURES:
        exact = by_row(setting, partial(whole, setting, temperature))
        for name, form, draws in forms(arguments.vocabulary, temperature, arguments.draws):
            report(name, form, draws, setting, temperature, exact)


def make(rows: int, vocabulary: int, width: int) -> Setting:
    """A setting whose teacher is as sure as a language model: very in some rows, hardly in others."""
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(rows, width, generator=g) * torch.linspace(1, 8, rows).unsqueeze(1)
    student = teacher + 0.5 * torch.randn(rows, width, generator=g)
    weight = torch.randn(vocabulary, width, generator=g) / width**0.5
    return Setting(teacher, student, weight, -torch.arange(1, vocabulary + 1).log())


def describe(setting: Setting) -> None:
    """Print how peaked the teacher is."""
    p = setting.teacher_logits.softmax(1)
    entropy = torch.special.entr(p).sum(1)
    held = {k: p.topk(min(k, p.shape[1])).values.sum(1).mean().item() for k in TOP}
    print(f"{len(p)} rows, vocabulary {p.shape[1]:,}, entropy {entropy.min():.2f} to {entropy.max():.2f} nats")
    print("mass of the likeliest: " + ", ".join(f"{k}: {share:.3f}" for k, share in held.items()))


Form = TopFormat | SampledFormat


def forms(vocabulary: int, temperature: float, draws: int) -> list[tuple[str, Form, int]]:
    """Names, forms, and how many stores are drawn of each."""
    found: list[tuple[str, Form, int]] = []
    for k in TOP:
        found.append((f"top {k}", TopFormat(k, vocabulary, (temperature,)), 1))
    for k in TOP:
        found.append((f"top {k}, float32", TopFormat(k, vocabulary, (temperature,), "float32"), 1))
    if temperature != 1:
        found += [(f"top {k}, tail at T=1 only", TopFormat(k, vocabulary), 1) for k in TOP]
    for power, systematic in ((1.0, False), (0.8, False), (1.0, True)):
        what = f"p^{power:g}{', systematic' if systematic else ''}"
        for n in SAMPLES:
            form = SampledFormat(n, vocabulary, 0, temperature, power, systematic)
            found.append((f"drawn {n}, {what}", form, draws))
    return found


def report(
    name: str, form: Form, draws: int, setting: Setting, temperature: float, exact: tuple[Tensor, Tensor]
) -> None:
    """Print the figures of a form."""
    logits, n = setting.teacher_logits, len(setting.teacher)
    losses, gradients, size = [], [], 0.0
    for number in range(draws):
        gathered = form.encode(logits, np.arange(n) + number * n)  # other units, other draws
        size += stored_bytes(form.fields, gathered) / n / draws
        targets = form.decode(gathered, temperature) if isinstance(form, TopFormat) else form.decode(gathered)
        loss, gradient = by_row(setting, partial(sparse, setting, targets))
        losses.append(loss)
        gradients.append(gradient)
    of_loss, of_gradient = torch.stack(losses).double(), torch.stack(gradients).double()
    loss_bias = (of_loss.mean(0) - exact[0]).mean() / exact[0].mean()
    gradient_bias = rms(of_gradient.mean(0) - exact[1]) / rms(exact[1])
    alike = torch.cosine_similarity(of_gradient.mean(0).flatten(), exact[1].double().flatten(), dim=0)
    loss_std = rms(of_loss - of_loss.mean(0)) / rms(exact[0])
    gradient_std = rms(of_gradient - of_gradient.mean(0)) / rms(exact[1])
    if draws > 1:  # their mean was fitted
        loss_std, gradient_std = (s * (draws / (draws - 1)) ** 0.5 for s in (loss_std, gradient_std))
    print(
        f"{name:26s}{temperature:3g}{size:7.1f}{loss_bias:+10.4f}{loss_std:8.4f}"
        f"{gradient_bias:10.4f}{alike:8.4f}{gradient_std:8.4f}"
    )


def rms(values: Tensor) -> Tensor:
    """Root mean square."""
    return values.double().square().mean().sqrt()


def stored_bytes(fields: tuple[Field, ...], gathered: Gathered) -> float:
    """Bytes of all units in the arrays of a store, and of the ends of those with any number of tokens."""
    arrays = sum(gathered.values[f.name].size * np.dtype(f.dtype).itemsize for f in fields)
    return arrays + (0 if gathered.counts is None else 4 * len(gathered.counts))


def by_row(setting: Setting, losses: Callable[[Tensor], VocabularyLosses]) -> tuple[Tensor, Tensor]:
    """(rows,) losses and (rows, width) gradients."""
    student = setting.student.clone().requires_grad_()
    found = losses(student)
    (gradient,) = torch.autograd.grad(found.total, student)
    return found.rows["ce"], gradient


OPTIONS = {"weights": {"ce": 1.0}, "denominators": {"ce": 1}}


def whole(setting: Setting, temperature: float, student: Tensor) -> VocabularyLosses:
    """Against the teacher itself."""
    return vocabulary_losses(
        student, setting.weight, setting.bias, teacher_NE=setting.teacher, teacher_weight_VE=setting.weight,
        teacher_bias_V=setting.bias, temperature=temperature, **OPTIONS,
    )  # fmt: skip


def sparse(setting: Setting, targets: TopRows | SampledRows, student: Tensor) -> VocabularyLosses:
    """Against what a store gives back."""
    return vocabulary_losses(student, setting.weight, setting.bias, targets=targets, **OPTIONS)


if __name__ == "__main__":
    main()
