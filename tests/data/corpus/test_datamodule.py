from types import SimpleNamespace

import numpy as np
import pytest
import torch

from potstill.data.corpus.binarize import binarize
from potstill.data.corpus.datamodule import BatchSettings, CorpusDataModule
from potstill.data.corpus.sources import TextFiles
from potstill.data.corpus.store import Corpus
from potstill.data.corpus.tokenizers import describe


@pytest.fixture(scope="module")
def vocabulary(bert_tokenizer):
    return describe(bert_tokenizer)


@pytest.fixture(scope="module")
def corpus(text_file, vocabulary, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    source = TextFiles((str(text_file),), "line", None, None, cache)
    return Corpus([binarize(source, vocabulary, cache=cache, max_length=32, num_proc=1)])


def module(corpus, vocabulary, kind="masked", **settings):
    settings = {"seed": 1, "batch_size": 8, **settings}
    return CorpusDataModule(corpus, corpus, vocabulary, kind, BatchSettings(**settings))


def steps(data, count=3):
    loader = iter(data.train_dataloader())
    return [data.on_after_batch_transfer(next(loader), 0) for _ in range(count)]


def flat(step):
    """Sequences of a step as sets of (ids, labels), whatever micro-batch they are in."""
    found = set()
    for micro in step.micro:
        labels = torch.full_like(micro.input_ids, -100).flatten()
        labels[micro.positions] = micro.labels
        for ids, mask, wanted in zip(
            micro.input_ids, micro.attention_mask, labels.view_as(micro.input_ids), strict=True
        ):
            length = int(mask.sum())
            assert (mask[:length] == 1).all()
            found.add((tuple(ids[:length].tolist()), tuple(wanted[:length].tolist())))
    return found


def test_a_step_is_the_same_however_it_is_cut(corpus, vocabulary):
    whole = steps(module(corpus, vocabulary, batch_size=12))
    for size, times in ((6, 2), (4, 3), (2, 6)):
        for one, cut in zip(
            whole, steps(module(corpus, vocabulary, batch_size=size, accumulate=times)), strict=True
        ):
            assert flat(one) == flat(cut)
            assert (one.tokens, one.labelled, one.seed) == (cut.tokens, cut.labelled, cut.seed)
            assert len(cut.micro) == times


def test_ranks_share_a_step(corpus, vocabulary):
    one = steps(module(corpus, vocabulary, batch_size=8))[0]
    halves = []
    for rank in range(2):
        data = module(corpus, vocabulary, batch_size=4)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, global_step=0)
        halves.append(steps(data)[0])
    assert flat(halves[0]) | flat(halves[1]) == flat(one)
    assert (
        halves[0].labelled
        == one.labelled
        == sum(int((m.labels != -100).sum()) for h in halves for m in h.micro)
    )


def test_counts(corpus, vocabulary):
    step = steps(module(corpus, vocabulary))[0]
    assert step.tokens == sum(len(m.positions) for m in step.micro) == step.own_tokens
    assert step.labelled == sum(int((m.labels != -100).sum()) for m in step.micro)
    assert step.labelled == int(np.ceil(0.15 * step.tokens))
    causal = steps(module(corpus, vocabulary, kind="causal"))[0]
    assert causal.labelled == causal.tokens - 8


def test_workers_give_what_one_process_gives(corpus, vocabulary):
    alone = steps(module(corpus, vocabulary))
    helped = steps(module(corpus, vocabulary, num_workers=2))
    assert [flat(step) for step in alone] == [flat(step) for step in helped]


def test_a_run_goes_on_where_it_was(corpus, vocabulary):
    data = module(corpus, vocabulary)
    an_epoch = data.steps_an_epoch
    through = steps(data, an_epoch)
    resumed = module(corpus, vocabulary)
    resumed.trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=4)
    loader = resumed.train_dataloader()
    assert len(loader) == an_epoch
    rest = [resumed.on_after_batch_transfer(item, 0) for item in loader]
    assert [flat(s) for s in rest] == [flat(s) for s in through[4:]]
    # In the next epoch other batches, from the first on.
    resumed.trainer.global_step = an_epoch
    second = [resumed.on_after_batch_transfer(item, 0) for item in loader]
    assert len(second) == an_epoch
    assert [flat(s) for s in second] != [flat(s) for s in through]


def test_evaluation_is_always_the_same(corpus, vocabulary):
    data = module(corpus, vocabulary)
    first, second = (
        [data.on_after_batch_transfer(item, 0) for item in data.val_dataloader()] for _ in range(2)
    )
    assert [flat(s) for s in first] == [flat(s) for s in second]
    assert sum(s.tokens for s in first) == int(corpus.lengths.sum())


def test_labels_are_the_hidden_tokens(corpus, vocabulary):
    """With the labels put back, every sequence is one of the corpus."""
    ids, lengths = corpus.gather(np.arange(len(corpus)))
    known = {tuple(s.tolist()) for s in np.split(ids, np.cumsum(lengths)[:-1])}
    for step in steps(module(corpus, vocabulary, batch_size=6, accumulate=2)):
        for sequence, labels in flat(step):
            assert (
                tuple(
                    label if label != -100 else token for token, label in zip(sequence, labels, strict=True)
                )
                in known
            )
    for step in steps(module(corpus, vocabulary, kind="causal")):
        for sequence, labels in flat(step):
            assert sequence in known
            assert labels == (*sequence[1:], -100)


def test_evaluation_masks_do_not_depend_on_the_training_corpus(corpus, vocabulary):
    alone = CorpusDataModule(None, corpus, vocabulary, "masked", BatchSettings(seed=1, batch_size=8))
    first, second = (
        [data.on_after_batch_transfer(item, 0) for item in data.val_dataloader()]
        for data in (alone, module(corpus, vocabulary, mlm_smoothing=2.0))
    )
    assert [flat(s) for s in first] == [flat(s) for s in second]


def test_a_few_evaluation_batches_are_a_fair_sample(vocabulary):
    from potstill.data.corpus.datamodule import _EvalSteps

    class Lengths:
        lengths = np.arange(10, 1010)

    plan = _EvalSteps(Lengths(), BatchSettings(seed=1, batch_size=8, eval_batch_size=10)).plan
    assert sorted(np.concatenate(plan)) == list(range(1000))
    assert all(np.ptp(batch) == 9 for batch in plan)
    assert abs(Lengths.lengths[np.concatenate(plan[:20])].mean() - Lengths.lengths.mean()) < 150
