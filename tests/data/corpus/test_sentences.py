import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from potstill.data.common.steps import BatchSettings
from potstill.data.common.text_files import sentences
from potstill.data.common.tokenizers import describe, load_backend
from potstill.data.corpus.binarize import binarize
from potstill.data.corpus.sentence_steps import SentenceDataModule
from potstill.data.corpus.sentences import Distinct, SentenceRows, Sentences
from potstill.data.corpus.sources import TextFiles
from potstill.data.corpus.splits import HeldOut
from potstill.data.corpus.store import Corpus


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("One. Two! Is it 5.3? 10 men.", ["One.", "Two!", "Is it 5.3?", "10 men."]),
        ('He said "No." She left.', ['He said "No."', "She left."]),
        ("Dr. Smith and J. R. Smith of the U.S. Senate met. Well, etc. and so on.",
         ["Dr. Smith and J. R. Smith of the U.S. Senate met.", "Well, etc. and so on."]),
        ("你好。“是。”她说。", ["你好。", "“是。”", "她说。"]),
        ("no end", ["no end"]),
        ("", []),
    ],
)  # fmt: skip
def test_sentences_of_a_line(line, expected):
    assert list(sentences([line])) == expected


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.txt").write_text("the man\nhe was\nthe man\nThe Man\n\nwho\n")
    (tmp_path / "b.txt").write_text("he was\nthey have made it\n")

    def of(*names, unit="line"):
        return TextFiles(tuple(str(tmp_path / name) for name in names), unit, None, None, tmp_path)

    return of


def test_texts_occur_once(files):
    texts = [text for batch in Distinct((files("a.txt"), files("b.txt"))).batches(8) for text in batch]
    assert texts == ["the man", "he was", "The Man", "who", "they have made it"]
    lower = Distinct((files("a.txt"),), prompt="query: ", lower=True)
    assert [text for batch in lower.batches(100) for text in batch] == ["query: the man", "query: he was", "query: who"]
    assert lower.fingerprint() != Distinct((files("a.txt"),), prompt="query: ").fingerprint()
    parts = [Distinct((HeldOut(files("a.txt", "b.txt"), 0.5, part),)) for part in ("train", "eval")]
    both = [text for part in parts for batch in part.batches(100) for text in batch]
    assert sorted(both) == sorted(texts)


def test_texts_keep_the_places_that_they_were_read_at(files):
    distinct = Distinct((files("a.txt"), files("b.txt")), prompt="query: ", lower=True)
    rows, total = distinct.rows()
    assert (rows.tolist(), total) == ([0, 1, 4, 6], 7)  # blank lines are no texts
    parts = [Distinct((HeldOut(files("a.txt", "b.txt"), 0.5, part),)) for part in ("train", "eval")]
    every = [text for batch in files("a.txt", "b.txt").batches(100) for text in batch]
    found = {}
    for part in parts:
        rows, total = part.rows()
        assert total == 7
        texts = [text for batch in part.batches(5) for text in batch]
        assert [every[row] for row in rows] == texts
        found |= dict(zip(rows.tolist(), texts, strict=True))
    assert sorted(found) == [0, 1, 3, 4, 6]
    limited = Distinct(tuple(replace(files(name), max_examples=2) for name in ("a.txt", "b.txt")))
    assert (limited.rows()[0].tolist(), limited.rows()[1]) == ([0, 1, 6], 7)


def test_a_step_has_the_vectors_of_its_texts(text_file, bert_tokenizer, tmp_path):
    source = TextFiles((str(text_file),), "line", None, None, tmp_path)
    corpus = Corpus([binarize(source, describe(bert_tokenizer), cache=tmp_path, max_length=20, whole=True, num_proc=1)])
    texts, asked = Sentences(corpus, min_length=8, source=source), []
    copied = pickle.loads(pickle.dumps(texts))  # for a worker process
    assert copied.source is None
    assert np.array_equal(copied.read(np.array([3, 1]))[0], texts.read(np.array([3, 1]))[0])

    def vectors(numbers):
        asked.append(numbers)
        return torch.from_numpy(numbers)[:, None].float()

    settings = BatchSettings(seed=0, batch_size=4, accumulate=2)
    data = SentenceDataModule(texts, texts, 0, 0, settings, (vectors, None))
    step = data.on_after_batch_transfer(data.train_steps[0, 0], 0)
    assert len(step.micro) == 2
    for group in (own for micro in step.micro for own in micro.groups):
        assert group.vectors[:, 0].tolist() == texts.texts[group.sequences].tolist()
        for row, number in zip(group.input_ids, group.vectors[:, 0].long(), strict=True):
            ids = corpus.gather([int(number)])[0]
            assert row[: len(ids)].tolist() == ids.tolist()
    (batch, *_) = data.val_dataloader()
    assert data.on_after_batch_transfer(batch, 0).micro[0].groups[0].vectors is None
    assert len(asked) == 1


@pytest.mark.parametrize("num_proc", [1, 2])
def test_each_text_is_one_sequence_as_the_tokenizer_makes_it(num_proc, files, text_file, bert_tokenizer, tmp_path):
    source = TextFiles((str(text_file), *files("a.txt").files), "line", None, None, tmp_path)
    store = binarize(
        source, describe(bert_tokenizer), cache=tmp_path / f"{num_proc}", max_length=16, whole=True, num_proc=num_proc
    )
    corpus, tokenizer = Corpus([store]), load_backend(bert_tokenizer)
    tokenizer.enable_truncation(16)
    texts = [text for batch in source.batches(1000) for text in batch]
    ids, lengths = corpus.gather(np.arange(len(texts)))
    assert [own.tolist() for own in np.split(ids, np.cumsum(lengths)[:-1])] == [tokenizer.encode(t).ids for t in texts]
    counts = corpus.describe()
    assert (counts["texts"], counts["sequences"]) == (len(texts), len(texts))
    assert counts["split"] == sum(len(tokenizer.encode(text).overflowing) > 0 for text in texts) > 0


def test_texts_in_two_tokenizers_belong_together(text_file, bert_tokenizer, gpt2_tokenizer, tmp_path):
    source, own = TextFiles((str(text_file),), "line", None, None, tmp_path), {}
    for folder in (bert_tokenizer, gpt2_tokenizer):
        own[folder] = Corpus(
            [binarize(source, describe(folder), cache=tmp_path, max_length=60, whole=True, num_proc=1)]
        )
    found = Sentences(own[bert_tokenizer], own[gpt2_tokenizer], min_length=20)
    assert found.lengths.min() >= 20
    assert 0 < len(found) < len(own[bert_tokenizer])
    numbers = np.array([3, 0, 5])
    made = [
        [load_backend(folder).decode(part) for part in np.split(ids, np.cumsum(lengths)[:-1])]
        for folder, (ids, lengths) in (
            (bert_tokenizer, found.read(numbers)), (gpt2_tokenizer, found.read(numbers, teacher=True)),
        )
    ]  # fmt: skip
    for one, other in zip(*made, strict=True):
        assert one.split()[:8] == other.split()[:8]


@pytest.mark.parametrize("most", [None, 60])
def test_rows_have_their_texts_once_in_a_step(most, text_file, bert_tokenizer, tmp_path):
    source = TextFiles((str(text_file),), "line", None, None, tmp_path)
    store = binarize(source, describe(bert_tokenizer), cache=tmp_path, max_length=60, whole=True, num_proc=1)
    texts = Sentences(Corpus([store]))
    numbers = np.array([[0, 5, -1], [7, 2, 5], [0, 3, 7], [8, 9, -1]])
    margins = np.array([[np.nan], [0.5], [0.25], [np.nan]], np.float32)
    rows = SentenceRows(texts, numbers, margins)
    assert rows.lengths.tolist() == [sum(texts.lengths[n] for n in row if n >= 0) for row in numbers]
    tokens = texts.lengths[[0, 2, 3, 5, 7, 8, 9]].sum()
    assert rows.describe() == {"rows": 4, "negatives": 2, "texts": 7, "tokens": tokens}
    settings = BatchSettings(seed=0, batch_size=2, max_tokens=most)
    data = SentenceDataModule(rows, None, 0, 0, settings)
    item = rows.item(np.array([2, 0, 1]), np.array([], int), 3, True)
    step = data.on_after_batch_transfer(item, 0)
    assert (step.sequences, step.rows.count, step.rows.negatives) == (5, 3, 2)
    assert step.rows.given_margins.tolist() == [0.25, 0.5]
    read = {}
    assert (len(step.micro) == 1) == (most is None)  # of two rows, that is of up to six texts
    for micro in step.micro:
        assert micro.step_texts == 5
        assert most is None or len(micro.places) * max(group.input_ids.shape[1] for group in micro.groups) <= most
        for group in micro.groups:
            for place, ids, mask in zip(group.places.tolist(), group.input_ids, group.attention_mask, strict=True):
                read[place] = ids[: int(mask.sum())].tolist()
    for row, places in zip(numbers[[2, 0, 1]], step.rows.texts.tolist(), strict=True):
        for number, place in zip(row, places, strict=True):
            assert (number < 0) == (place < 0)
            if number >= 0:
                assert read[place] == texts.read(np.array([number]))[0].tolist()
