"""A generated data set of arithmetic word problems with rationales, and a tokenizer for it.

People have, get and lose things; the question is how many one of them has at the end. The rationale is the sums. Each
word and each number is one token, so a student from scratch learns the task in minutes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from potstill.config.data import GeneratedConfig
from potstill.data.common.store import build_once, store_key
from potstill.data.common.tokenizers import T5_NAMES
from potstill.data.rationales.rows import RationaleRows
from potstill.data.rationales.sets import GENERATED
from potstill.errors import ConfigError
from potstill.runtime.json_text import json_text

PEOPLE = ("ann", "bob", "eve", "ian", "kim", "leo", "mia", "tom")
THINGS = ("apples", "books", "cards", "pens")
WORDS = ("has", "gets", "loses", "how", "many", "?", ".", "+", "-", "=")
TRIES = 100  # draws without a new problem until the problems count as exhausted


@dataclass(frozen=True)
class Problem:
    """A problem with its answer and the sums."""

    input: str
    label: str
    rationale: str


def arithmetic_rows(problems: GeneratedConfig, split: str) -> RationaleRows:
    """The rows of a part; all problems of all parts are distinct.

    Args:
        problems: Size of the parts, and the difficulty.
        split: `train`, `valid` or `test`.

    Raises:
        ConfigError: There are fewer distinct problems.
    """
    sizes = {"test": problems.test, "valid": problems.valid, "train": problems.train}
    start = sum(size for name, size in sizes.items() if list(sizes).index(name) < list(sizes).index(split))
    drawn = _drawn(problems, start + sizes[split])[start:]
    count = len(drawn)
    return RationaleRows(
        inputs=[problem.input for problem in drawn],
        labels=[problem.label for problem in drawn],
        llm_labels=[None] * count,
        rationales=[problem.rationale for problem in drawn],
        choices=[None] * count,
        unparsed=[False] * count,
        places=[f"row {number}" for number in range(count)],
        name=f"{GENERATED}_{split}",
        key="data.generated",
        counts=dict.fromkeys(("unparsed", "unanswered", "off_label", "left_out"), 0)
        | {"read": count, "answered": count},
    )


def draw_problem(problems: GeneratedConfig, generator: random.Random) -> Problem:
    """Draw one problem."""
    names, thing = generator.sample(PEOPLE, problems.people), generator.choice(THINGS)
    asked = generator.choice(names)
    counts = {name: generator.randint(0, problems.largest) for name in names}
    sentences = [f"{name} has {count} {thing} ." for name, count in counts.items()]
    sums: list[str] = []
    for _ in range(generator.randint(1, problems.events)):
        # There is at least one sum.
        name = generator.choice(names)
        sentences.append(_event(name, counts, problems.largest, generator, sums if name == asked else []))
    if not sums:
        sentences.append(_event(asked, counts, problems.largest, generator, sums))
    return Problem(" ".join([*sentences, f"how many has {asked} ?"]), str(counts[asked]), " ".join(sums))


def _event(name: str, counts: dict[str, int], largest: int, generator: random.Random, sums: list[str]) -> str:
    """Change a person's count, append the sum, and return the sentence."""
    before = counts[name]
    gets = before == 0 or (before < largest and generator.random() < 0.5)
    change = generator.randint(1, min(largest // 2, largest - before if gets else before))
    counts[name] = before + change if gets else before - change
    sums.append(f"{before} {'+' if gets else '-'} {change} = {counts[name]} .")
    return f"{name} {'gets' if gets else 'loses'} {change} ."


def arithmetic_tokenizer(problems: GeneratedConfig, prefixes: tuple[str, ...], cache: Path) -> Path:
    """The folder of a tokenizer with one token per word and number of the problems, and an end token.

    Args:
        problems: Size of the problems.
        prefixes: Prefixes of the tasks, whose words are tokens too.
        cache: The tokenizer is stored in its `tokenizers` folder.

    Raises:
        DataError: The cache cannot be written.
    """
    words = [
        *(T5_NAMES[name] for name in ("pad_token", "eos_token", "unk_token")),
        *dict.fromkeys(" ".join(prefixes).split()),
        *WORDS,
        *PEOPLE,
        *THINGS,
        *map(str, range(problems.largest + 1)),
    ]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}

    def build(temporary: Path) -> None:
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=T5_NAMES["unk_token"]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        end = T5_NAMES["eos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
        )
        tokenizer.add_special_tokens(list(T5_NAMES.values()))
        tokenizer.save(str(temporary / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **T5_NAMES}
        (temporary / "tokenizer_config.json").write_text(json_text(config, indent=1), encoding="utf-8")

    folder = cache / "tokenizers" / store_key(vocabulary, GENERATED, {"kind": "words"})
    build_once(folder, build)
    return folder


def _drawn(problems: GeneratedConfig, count: int) -> list[Problem]:
    """The first distinct problems; each number has its own generator."""
    found: dict[str, Problem] = {}
    number = missed = 0
    while len(found) < count:
        # A text as seed is hashed with sha512, the same on every machine.
        problem = draw_problem(problems, random.Random(f"{problems.seed}/{number}"))
        number += 1
        missed = missed + 1 if problem.input in found else 0
        found.setdefault(problem.input, problem)
        if missed > TRIES:
            raise ConfigError(
                f"data.generated: only about {len(found):,} different problems exist, {count:,} are needed; use fewer "
                "rows, or more people"
            )
    return list(found.values())
