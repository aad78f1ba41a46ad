from types import SimpleNamespace

import numpy as np
import pytest
import torch

from potstill.data.common.steps import BatchSettings
from potstill.data.common.tokenizers import describe
from potstill.data.corpus.binarize import binarize
from potstill.data.corpus.datamodule import CorpusDataModule
from potstill.data.corpus.sources import TextFiles
from potstill.data.corpus.store import Corpus
from potstill.errors import DataError
from potstill.interchange.plans import PlanSettings


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
    """Sequences of a step as a set of (ids, labels)."""
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


def test_a_step_does_not_depend_on_micro_batches(corpus, vocabulary):
    whole = steps(module(corpus, vocabulary, batch_size=12))
    for size, times in ((6, 2), (4, 3), (2, 6)):
        for one, cut in zip(whole, steps(module(corpus, vocabulary, batch_size=size, accumulate=times)), strict=True):
            assert flat(one) == flat(cut)
            assert (one.tokens, one.labelled, one.seed) == (cut.tokens, cut.labelled, cut.seed)
            lengths = torch.cat([micro.attention_mask.sum(1) for micro in one.micro])
            assert (one.sequences, one.pairs) == (len(lengths), int(lengths.square().sum()))
            assert (cut.sequences, cut.pairs) == (one.sequences, one.pairs)
            assert len(cut.micro) == times


def test_ranks_share_a_step(corpus, vocabulary):
    one = steps(module(corpus, vocabulary, batch_size=8))[0]
    halves = []
    for rank in range(2):
        data = module(corpus, vocabulary, batch_size=4)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, global_step=0)
        halves.append(steps(data)[0])
    assert flat(halves[0]) | flat(halves[1]) == flat(one)
    assert halves[0].labelled == one.labelled == sum(int((m.labels != -100).sum()) for h in halves for m in h.micro)


def test_counts(corpus, vocabulary):
    step = steps(module(corpus, vocabulary))[0]
    assert step.tokens == sum(len(m.positions) for m in step.micro)
    assert step.labelled == sum(int((m.labels != -100).sum()) for m in step.micro)
    assert step.labelled == int(np.ceil(0.15 * step.tokens))
    causal = steps(module(corpus, vocabulary, kind="causal"))[0]
    assert causal.labelled == causal.tokens - 8


def test_a_step_does_not_depend_on_workers(corpus, vocabulary):
    alone = steps(module(corpus, vocabulary))
    helped = steps(module(corpus, vocabulary, num_workers=2))
    assert [flat(step) for step in alone] == [flat(step) for step in helped]


def test_a_run_resumes_at_its_step(corpus, vocabulary):
    data = module(corpus, vocabulary)
    steps_per_epoch = data.steps_per_epoch
    through = steps(data, steps_per_epoch)
    resumed = module(corpus, vocabulary)
    resumed.trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=4)
    loader = resumed.train_dataloader()
    assert len(loader) == steps_per_epoch
    rest = [resumed.on_after_batch_transfer(item, 0) for item in loader]
    assert [flat(s) for s in rest] == [flat(s) for s in through[4:]]
    # In the next epoch other batches, from the first on.
    resumed.trainer.global_step = steps_per_epoch
    second = [resumed.on_after_batch_transfer(item, 0) for item in loader]
    assert len(second) == steps_per_epoch
    assert [flat(s) for s in second] != [flat(s) for s in through]


def test_evaluation_is_always_the_same(corpus, vocabulary):
    data = module(corpus, vocabulary)
    first, second = ([data.on_after_batch_transfer(item, 0) for item in data.val_dataloader()] for _ in range(2))
    assert [flat(s) for s in first] == [flat(s) for s in second]
    assert sum(s.tokens for s in first) == int(corpus.lengths.sum())


def test_labels_are_the_hidden_tokens(corpus, vocabulary):
    """With the labels in place of the masks, every sequence is one of the corpus."""
    ids, lengths = corpus.gather(np.arange(len(corpus)))
    known = {tuple(s.tolist()) for s in np.split(ids, np.cumsum(lengths)[:-1])}
    for step in steps(module(corpus, vocabulary, batch_size=6, accumulate=2)):
        for sequence, labels in flat(step):
            assert (
                tuple(label if label != -100 else token for token, label in zip(sequence, labels, strict=True)) in known
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
    from potstill.data.common.steps import EvalSteps

    class Lengths:
        lengths = np.arange(10, 1010)

    plan = EvalSteps(Lengths(), BatchSettings(seed=1, batch_size=8, eval_batch_size=10)).plan
    assert sorted(np.concatenate(plan)) == list(range(1000))
    assert all(np.ptp(batch) == 9 for batch in plan)
    assert abs(Lengths.lengths[np.concatenate(plan[:20])].mean() - Lengths.lengths.mean()) < 150


def test_even_evaluation_batches():
    from potstill.data.common.steps import EvalSteps

    class Lengths:
        lengths = np.arange(21)

    settings = BatchSettings(seed=1, batch_size=8, eval_batch_size=5, even=True)
    plan = EvalSteps(Lengths(), settings, world=4).plan
    assert sorted(len(batch) for batch in plan) == [5, 5, 5, 6]
    assert sorted(np.concatenate(plan)) == list(range(21))
    assert sorted(len(batch) for batch in EvalSteps(Lengths(), settings, world=8).plan) == [8, 13]
    with pytest.raises(DataError, match=r"^trainer\.devices=32: 21 "):
        EvalSteps(Lengths(), settings, world=32)


def exchanges(step, data):
    """All swaps of a step as ((base sequence, column), (source sequence, column))."""
    found = set()
    for micro in step.micro:
        sources = micro if micro.sources is None else micro.sources
        ends = []
        for part, flat_index in ((micro, micro.swap.base), (sources, micro.swap.source)):
            width = part.input_ids.shape[1]
            rows, columns = flat_index // width, flat_index % width
            assert part.attention_mask[rows, columns].all()
            lengths = part.attention_mask.sum(1)
            ends.append(
                [
                    (tuple(part.input_ids[r, : lengths[r]].tolist()), c)
                    for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
                ]
            )
        found |= set(zip(*ends, strict=True))
    return found


PLANS = {
    "in batch": PlanSettings(),
    "crossway": PlanSettings(0.5, positions="free", crossway=True),
    "masked": PlanSettings(0.9, positions="masked"),
    "data set": PlanSettings(pairing="dataset"),
    "data set, crossway": PlanSettings(pairing="dataset", crossway=True, max_tokens=4),
    "shuffled": PlanSettings(pairing="shuffled"),
    "shuffled, crossway": PlanSettings(0.5, pairing="shuffled", crossway=True),
    "shuffled, masked": PlanSettings(1.0, positions="masked", pairing="shuffled"),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_swaps_do_not_depend_on_micro_batches(corpus, vocabulary, plan, kind):
    if kind == "causal" and PLANS[plan].positions == "masked":
        pytest.skip("a causal model masks nothing")
    settings = {"interchange": PLANS[plan], "kind": kind}
    whole = steps(module(corpus, vocabulary, batch_size=12, **settings))
    for size, times in ((6, 2), (4, 3), (3, 4), (2, 6)):
        data = module(corpus, vocabulary, batch_size=size, accumulate=times, **settings)
        for one, cut in zip(whole, steps(data), strict=True):
            assert exchanges(one, data) == exchanges(cut, data) != set()
            assert flat(one) == flat(cut)
            for name in ("tokens", "labelled", "reached", "reached_labelled", "seed"):
                assert getattr(one, name) == getattr(cut, name), name
            parts = [p for m in cut.micro for p in (m, m.sources if PLANS[plan].crossway else None) if p is not None]
            assert cut.reached == sum(int(p.reached.sum()) for p in parts)
            assert cut.reached_labelled == sum(int((p.reached & (p.labels != -100)).sum()) for p in parts)
            assert cut.tokens == sum(len(p.positions) for p in parts)


@pytest.mark.parametrize("plan", ["in batch", "data set", "shuffled"])
def test_ranks_share_the_swaps(corpus, vocabulary, plan):
    one = steps(module(corpus, vocabulary, batch_size=8, interchange=PLANS[plan]))[0]
    halves = []
    for rank in range(2):
        data = module(corpus, vocabulary, batch_size=4, interchange=PLANS[plan])
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, global_step=0)
        halves.append(steps(data)[0])
    assert flat(halves[0]) | flat(halves[1]) == flat(one)
    parts = [exchanges(half, data) for half in halves]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == exchanges(one, data)
    assert {half.reached for half in halves} == {one.reached}


def test_pairs_stay_together_with_a_token_budget(corpus, vocabulary):
    data = module(corpus, vocabulary, max_tokens=40, interchange=PlanSettings())
    for step in steps(data, data.steps_per_epoch):
        assert all(len(micro.input_ids) >= 2 for micro in step.micro)


def test_sources_of_the_data_set_have_similar_lengths(corpus, vocabulary):
    data = module(corpus, vocabulary, interchange=PLANS["data set"])
    for step in steps(data):
        for (base, _), (source, _) in exchanges(step, data):
            assert base != source
        for micro in step.micro:
            ours, theirs = (part.attention_mask.sum(1) for part in (micro, micro.sources))
            assert (ours - theirs).abs().float().mean() < 12


def test_shuffled_sources_are_one_permutation_of_the_corpus(corpus, vocabulary):
    data = module(corpus, vocabulary, batch_size=4, interchange=PLANS["shuffled"])
    source_of = {}
    for epoch in range(2):
        found = {}
        for step in range(data.steps_per_epoch):
            item = data.train_steps[epoch, step]
            numbers, lengths, bases = item["sequences"].numpy(), item["lengths"].numpy(), item["bases"]
            found |= dict(zip(numbers[:bases].tolist(), numbers[bases:].tolist(), strict=True))
            theirs = np.minimum(corpus.lengths[numbers[bases:]], corpus.lengths[numbers[:bases]])
            assert lengths.tolist() == [*corpus.lengths[numbers[:bases]], *theirs]
            whole, starts = corpus.gather(numbers)[0], np.append(0, np.cumsum(corpus.lengths[numbers]))
            expected = [whole[start : start + n] for start, n in zip(starts, lengths, strict=False)]
            assert item["ids"].tolist() == np.concatenate(expected).tolist()
        assert len(found) >= len(corpus) - 4
        assert len(set(found.values())) == len(found)
        assert all(source_of.setdefault(base, source) == source for base, source in found.items())
    other = module(corpus, vocabulary, batch_size=4, seed=8, interchange=PLANS["shuffled"])
    item = other.train_steps[0, 0]
    numbers, bases = item["sequences"].tolist(), item["bases"]
    assert [source_of.get(base) for base in numbers[:bases]] != numbers[bases:]


def test_a_causal_model_is_reached_after_the_first_swap(corpus, vocabulary):
    for step in steps(module(corpus, vocabulary, kind="causal", interchange=PlanSettings())):
        for micro in step.micro:
            width = micro.input_ids.shape[1]
            first = {}
            for at in micro.swap.base.tolist():
                first[at // width] = min(first.get(at // width, width), at % width)
            expected = [int(at) % width >= first[int(at) // width] for at in micro.positions]
            assert micro.reached.tolist() == expected


def test_evaluation_swaps_do_not_depend_on_the_batch_size(corpus, vocabulary):
    found = []
    for size in (4, 8, 9):
        data = module(corpus, vocabulary, eval_batch_size=size, interchange=PLANS["data set, crossway"])
        batches = [data.on_after_batch_transfer(item, 0) for item in data.val_dataloader()]
        assert all(len(m.input_ids) >= 2 for step in batches for m in step.micro)
        found.append(set().union(*(exchanges(step, data) for step in batches)))
    assert found[0] == found[1] == found[2]


def test_a_corpus_of_too_short_sequences(corpus, vocabulary):
    longest = int(corpus.lengths.max())
    with pytest.raises(DataError, match=rf"^objective\.interchange\.proportion=.* {len(corpus)} .* {longest}\)"):
        module(corpus, vocabulary, interchange=PlanSettings(0.9 / longest))
