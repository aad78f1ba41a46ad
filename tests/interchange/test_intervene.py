"""Counterfactual runs: equality with a full run with hooks, and properties of interventions."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.test_backbone import CASES, PAD, tiny
from torch.testing import assert_close

from potstill.interchange.agreement import AgreementMetric, Reactions, interchange_agreement
from potstill.interchange.intervene import Swap, blocks_read, counterfactual, read_block, run, swap_tokens
from potstill.interchange.mappings import Site, read_mappings
from potstill.models.backbone import backbone_of
from potstill.models.views import VIEWS

LENGTHS = (7, 10, 4)
WHOLE = ((0, 16),)
SITES = {
    "first block": (Site(0, WHOLE),),
    "last block": (Site(2, WHOLE),),
    "several blocks": (Site(0, WHOLE), Site(2, ((4, 12),))),
    "heads": (Site(1, ((4, 8), (12, 16))),),
    "dimensions": (Site(1, ((0, 2), (4, 6))),),
}


def batch(lengths=LENGTHS, seed=0, width=None):
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    mask = torch.stack([(torch.arange(width) < n).long() for n in lengths])
    ids = torch.randint(3, 40, mask.shape, generator=generator)
    return torch.where(mask.bool(), ids, PAD), mask


def swap_of(pairs, width, source_width=None):
    """From ((row, column), (source row, source column)) pairs."""
    base = torch.tensor([r * width + c for (r, c), _ in pairs], dtype=torch.long)
    source = torch.tensor([r * (source_width or width) + c for _, (r, c) in pairs], dtype=torch.long)
    return Swap(base, source)


PAIRS = [((0, 2), (1, 5)), ((0, 3), (1, 6)), ((1, 9), (0, 0)), ((2, 1), (1, 4))]


def resumed(backbone, base, source, sites, swap, read_site="block_output"):
    """Last hidden states, from base and source (ids, mask); one run where they are the same batch."""
    keep = {sites[0].block} | blocks_read(sites, read_site)
    with torch.no_grad():
        base_run = run(backbone, backbone.embed(*base), keep)
        source_run = base_run if source is base else run(backbone, backbone.embed(*source), keep, whole=False)
        return counterfactual(backbone, base_run, source_run, sites, swap, read_site)


def hooked(model, base, source, sites, swap, read_site="block_output"):
    """The textbook way: a full source pass that records, and a full base pass whose hooks overwrite."""
    backbone = backbone_of(model)
    blocks = model.base_model.get_submodule(backbone.view.blocks)
    recorded, handles = {}, []

    def states(output):
        return output[0] if isinstance(output, tuple) else output

    for index, block in enumerate(blocks):
        handles.append(block.register_forward_pre_hook(lambda _, args, i=index: recorded.update({i - 1: args[0]})))
        handles.append(block.register_forward_hook(lambda _, args, out, i=index: recorded.update({i: states(out)})))
    with torch.no_grad():
        model(input_ids=source[0], attention_mask=source[1])
    for handle in handles:
        handle.remove()
    handles = []
    recorded = {block: state.clone() for block, state in recorded.items()}

    def overwrite(site):
        def hook(_module, _args, output):
            hidden = states(output).clone()
            flat, values = (hidden.view(-1, hidden.shape[-1]), recorded[read_block(site, read_site)].flatten(0, 1))
            for start, stop in site.columns:
                flat[swap.base, start:stop] = values[swap.source, start:stop]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    for site in sites:
        handles.append(blocks[site.block].register_forward_hook(overwrite(site)))
    with torch.no_grad():
        last = model.base_model(input_ids=base[0], attention_mask=base[1]).last_hidden_state
    for handle in handles:
        handle.remove()
    return last


@pytest.mark.parametrize("read_site", ["block_output", "block_input"])
@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_hooked(case, sites, read_site):
    model = tiny(case)
    inputs = batch()
    swap, real = swap_of(PAIRS, inputs[0].shape[1]), inputs[1].bool()
    ours = resumed(backbone_of(model), inputs, inputs, SITES[sites], swap, read_site)
    theirs = hooked(model, inputs, inputs, SITES[sites], swap, read_site)
    assert_close(ours[real], theirs[real], rtol=0, atol=1e-5)
    plain = model.base_model(input_ids=inputs[0], attention_mask=inputs[1]).last_hidden_state
    assert not torch.allclose(ours[real], plain[real], atol=1e-3)


def test_every_architecture_is_among_the_cases():
    assert {model_type for model_type, _ in CASES.values()} == set(VIEWS) - {"bigru", "static"}  # no language models


@pytest.mark.parametrize("case", ["bert", "gpt2"])
def test_separate_sources_equal_sources_in_the_batch(case):
    backbone = backbone_of(tiny(case))
    inputs = batch()
    other = (inputs[0][[1, 0]], inputs[1][[1, 0]])
    here = swap_of([((0, 2), (1, 5)), ((1, 9), (0, 0))], 10)
    there = swap_of([((0, 2), (0, 5)), ((1, 9), (1, 0))], 10)
    sites, real = SITES["several blocks"], inputs[1][:2].bool()
    inside = resumed(backbone, inputs, inputs, sites, here)[:2]
    outside = resumed(backbone, inputs, other, sites, there)[:2]
    assert_close(inside[real], outside[real], rtol=0, atol=1e-6)


positions_of = st.lists(
    st.integers(0, 2).flatmap(lambda row: st.tuples(st.just(row), st.integers(0, LENGTHS[row] - 1))),
    min_size=1, max_size=6, unique=True,
)  # fmt: skip
sites_of = st.sampled_from([SITES[name] for name in SITES])
cases_of = st.sampled_from(["bert", "gpt2", "llama"])
MODELS = {case: tiny(case) for case in ("bert", "gpt2", "llama")}


@settings(max_examples=20, deadline=None)
@given(cases_of, sites_of, positions_of)
def test_swapping_with_itself_changes_nothing(case, sites, positions):
    model, inputs = MODELS[case], batch()
    swap = swap_of([(at, at) for at in positions], 10)
    ours = resumed(backbone_of(model), inputs, inputs, sites, swap)
    with torch.no_grad():
        plain = model.base_model(input_ids=inputs[0], attention_mask=inputs[1]).last_hidden_state
    assert_close(ours[inputs[1].bool()], plain[inputs[1].bool()], rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(cases_of, positions_of, st.data())
def test_a_swap_of_the_whole_last_block_gives_the_output_of_the_source(case, positions, data):
    model, inputs = MODELS[case], batch()
    sources = [data.draw(st.sampled_from([(1, 3), (0, 6), (2, 0)])) for _ in positions]
    swap = swap_of(list(zip(positions, sources, strict=True)), 10)
    with torch.no_grad():
        plain = model.base_model(input_ids=inputs[0], attention_mask=inputs[1]).last_hidden_state.flatten(0, 1)
    ours = resumed(backbone_of(model), inputs, inputs, SITES["last block"], swap).flatten(0, 1)
    assert_close(ours[swap.base], plain[swap.source], rtol=0, atol=1e-5)
    others = torch.ones(len(ours), dtype=torch.bool)
    others[swap.base] = False
    others &= inputs[1].flatten().bool()
    assert_close(ours[others], plain[others], rtol=0, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(cases_of, sites_of, st.integers(1, 5))
def test_padding_never_matters(case, sites, more):
    backbone = backbone_of(MODELS[case])
    narrow, wide = batch(), batch(width=10)
    wide = (torch.nn.functional.pad(narrow[0], (0, more), value=PAD), torch.nn.functional.pad(narrow[1], (0, more)))
    ours = resumed(backbone, narrow, narrow, sites, swap_of(PAIRS, 10))
    theirs = resumed(backbone, wide, wide, sites, swap_of(PAIRS, 10 + more))[:, :10]
    real = narrow[1].bool()
    assert_close(ours[real], theirs[real], rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=5, unique=True), positions_of)
def test_other_columns_are_unchanged(columns, positions):
    from potstill.interchange.intervene import write

    site = Site(0, tuple((c, c + 1) for c in sorted(columns)))
    generator = torch.Generator().manual_seed(3)
    base, source = (torch.randn(3, 10, 16, generator=generator) for _ in range(2))
    swap = swap_of([(at, (1, 1)) for at in positions], 10)
    written = write(base, source, site, swap).flatten(0, 1)
    expected = base.flatten(0, 1).clone()
    for at in swap.base:
        expected[at, sorted(columns)] = source[1, 1, sorted(columns)]
    assert torch.equal(written, expected)


@pytest.mark.parametrize("case", ["gpt2", "llama", "mistral-window"])
def test_earlier_positions_of_a_causal_model_are_unchanged(case):
    model, inputs = tiny(case), batch((10, 10))
    ours = resumed(backbone_of(model), inputs, inputs, SITES["first block"], swap_of([((0, 4), (1, 8))], 10))
    with torch.no_grad():
        plain = model.base_model(input_ids=inputs[0], attention_mask=inputs[1]).last_hidden_state
    assert_close(ours[0, :4], plain[0, :4], rtol=0, atol=1e-6)
    assert_close(ours[1], plain[1], rtol=0, atol=1e-6)
    changed = (ours[0, 4:] - plain[0, 4:]).abs().amax(-1)
    assert (changed > 1e-4).any()


def test_gradients_flow_into_base_and_source():
    model = tiny("bert").train()
    backbone, inputs, other = backbone_of(model), batch(), batch(seed=1)
    sites, swap = SITES["first block"], swap_of(PAIRS, 10)
    flows = [backbone.embed(*part) for part in (inputs, other)]
    runs = [run(backbone, flow, {0}) for flow in flows]
    for part in runs:
        part.state(0).retain_grad()
    counterfactual(backbone, *runs, sites, swap).sum().backward()
    swapped = torch.zeros(30, dtype=torch.bool)
    swapped[swap.base] = True
    base_grad, source_grad = (part.state(0).grad.flatten(0, 1) for part in runs)
    assert (base_grad[swapped] == 0).all()
    assert (source_grad[swap.source].abs().sum(-1) > 0).all()


def test_swap_tokens():
    inputs = batch()
    swapped = swap_tokens(inputs[0], inputs[0], swap_of(PAIRS, 10))
    expected = inputs[0].clone()
    for (row, column), (source, other) in PAIRS:
        expected[row, column] = inputs[0][source, other]
    assert torch.equal(swapped, expected)


def test_agreement_equals_full_runs():
    teacher, student = tiny("bert"), tiny("bert")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.005 * torch.randn_like(parameter))
    inputs, swap = batch(), swap_of(PAIRS, 10)
    positions = inputs[1].flatten().nonzero().squeeze(1)[3:]
    one, two = backbone_of(teacher), backbone_of(student)
    mappings = read_mappings("grid", one, two)
    found = interchange_agreement(one, two, *inputs, swap, positions, mappings)
    with torch.no_grad():
        their_base, our_base = (
            model(*inputs).logits.flatten(0, 1)[positions].argmax(-1) for model in (teacher, student)
        )
    assert found.compared == len(positions)
    assert 0 < found.unswapped == (their_base == our_base).sum() < len(positions)
    for m, mapping in enumerate(mappings):
        logits = []
        for model, sites in ((teacher, mapping.teacher), (student, mapping.student)):
            last = hooked(model, inputs, inputs, sites, swap)
            with torch.no_grad():
                backbone = backbone_of(model)
                head = backbone.head(last.flatten(0, 1)[positions])
                logits.append(torch.nn.functional.linear(head, *backbone.decoder).log_softmax(-1))
        theirs, ours = logits
        same, changed = theirs.argmax(-1) == ours.argmax(-1), theirs.argmax(-1) != their_base
        assert found.same_M[m] == same.sum()
        assert found.changed_M[m] == changed.sum()
        assert found.followed_M[m] == (same & changed).sum()
        expected = torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="sum")
        assert found.kl_M[m].item() == pytest.approx(expected.item(), rel=1e-3)
    assert 0 < found.followed_M.sum() < found.changed_M.sum()


def test_a_model_agrees_with_itself():
    backbone, inputs, swap = backbone_of(tiny("llama")), batch(), swap_of(PAIRS, 10)
    positions = inputs[1].flatten().nonzero().squeeze(1)
    mappings = read_mappings("multilayer", backbone, backbone)
    found = interchange_agreement(backbone, backbone, *inputs, swap, positions, mappings)
    assert (found.same_M == len(positions)).all()
    assert torch.equal(found.followed_M, found.changed_M)
    assert found.unswapped == len(positions)
    assert found.kl_M.abs().max() < 1e-4


def test_means_over_mappings():
    mappings = read_mappings("grid", backbone_of(tiny("bert")), backbone_of(tiny("bert")))[:2]
    metric = AgreementMetric(mappings)
    for _ in range(2):
        sums = ([3.0, 1.0], [0.5, 1.5], [2.0, 0.0], [1.0, 0.0])
        metric.update(Reactions(*(torch.tensor(x, dtype=torch.float64) for x in sums), torch.tensor(2.0), 4))
    assert metric.compute() == {
        "interchange_agreement_0-0": 0.75,
        "interchange_agreement_0-1": 0.25,
        "interchange_agreement": 0.5,
        "interchange_kl_0-0": 0.125,
        "interchange_kl_0-1": 0.375,
        "interchange_kl": 0.25,
        "interchange_followed_0-0": 0.5,  # the swap of 0-1 changes no prediction
        "interchange_followed": 0.5,
        "interchange_changed": 0.25,
        "interchange_unswapped": 0.5,
    }
    metric.start()
    assert metric.compute() == {}
    none = torch.zeros(2, dtype=torch.float64)
    metric.update(Reactions(none, none, none, none, torch.tensor(0.0), 4))
    assert "interchange_followed" not in metric.compute()


def test_reverse():
    swap = replace(swap_of(PAIRS, 10), draw=3)
    back = swap.reverse()
    assert torch.equal(back.base, swap.source)
    assert torch.equal(back.source, swap.base)
    assert back.draw == 3
