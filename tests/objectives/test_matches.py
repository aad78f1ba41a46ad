from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from potstill.data.common.batching import IGNORED
from potstill.data.corpus.datamodule import MicroBatch, StepBatch
from potstill.data.tasks.datamodule import TaskBatch, TaskStep
from potstill.errors import ConfigError, PairError
from potstill.interchange.intervene import Swap
from potstill.interchange.mappings import read_mappings
from potstill.losses import attention, hidden
from potstill.losses.relations import relation_kl
from potstill.losses.soft_targets import kl_divergence
from potstill.losses.transport import earth_movers_distance, layer_costs, transport_plan
from potstill.models.backbone import backbone_of
from potstill.models.preparing import set_checkpointing
from potstill.objectives.interchange import Interchange
from potstill.objectives.language import LanguageObjective
from potstill.objectives.matches import Matches
from potstill.objectives.matching import read_matches
from potstill.objectives.schedules import WeightSchedule
from potstill.objectives.task import ModelReader, TaskObjective

SIZES = {"vocab_size": 40, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}


def bert(seed, layers, width=16, heads=BertForSequenceClassification, attn="eager"):
    torch.manual_seed(seed)
    config = BertConfig(**SIZES, num_hidden_layers=layers, hidden_size=width, initializer_range=0.3)
    config._attn_implementation = attn
    return heads(config).eval()


def batch(rows=slice(None)):
    ids = torch.randint(5, 40, (6, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([7, 5, 3, 7, 6, 2])[:, None]).long()
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    return TaskBatch(*(part[rows] for part in (ids * mask, mask, 0 * mask, labels, torch.arange(6))))


STEP = TaskStep([], predictions=6, tokens=30, sequences=6, pairs=49 + 25 + 9 + 49 + 36 + 4)


def objective_of(value, student, *teachers, **further):
    backbones = [backbone_of(teacher) for teacher in teachers]
    read = read_matches(value, [backbone.spec for backbone in backbones], backbone_of(student).spec)
    matches = Matches(read, backbones, backbone_of(student), seed=0)
    return TaskObjective("classification", matches.weights, matches=matches, **further)


def share_of(objective, student, teachers, micro, denominators):
    kind, exchange = objective.kind, objective.interchange
    readers = [ModelReader(backbone_of(own), kind, exchange, number) for number, own in enumerate(teachers)]
    return objective(ModelReader(backbone_of(student), kind, exchange), readers, micro, denominators)


def found(objective, student, *teachers, micro=None):
    return share_of(objective, student, teachers, batch() if micro is None else micro, objective.denominators(STEP))


def outputs(model):
    micro = batch()
    with torch.no_grad():
        return model(
            input_ids=micro.input_ids, attention_mask=micro.attention_mask, output_hidden_states=True,
            output_attentions=True,
        )  # fmt: skip


def scores_by_hooks(model, block, part="scores"):
    """Scores of a block from its own projections of the hidden states before it."""
    layer = model.base_model.encoder.layer[block - 1].attention.self
    states = outputs(model).hidden_states[block - 1]
    vectors = {name: getattr(layer, name)(states).detach() for name in ("query", "key", "value")}
    if part != "scores":
        return vectors[part]
    heads = layer.num_attention_heads
    q, k = (vectors[name].view(6, 7, heads, -1).transpose(1, 2) for name in ("query", "key"))
    return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


def test_hidden_states_are_those_of_transformers():
    teacher, student = bert(0, 4), bert(1, 2)
    mask, ours, theirs = (batch().attention_mask, outputs(student).hidden_states, outputs(teacher).hidden_states)
    cases = {
        "hidden_mse": hidden.hidden_mse(ours[1], theirs[2], mask),
        "cos": hidden.hidden_cosine(ours[1], theirs[2], mask),
        "pkd": hidden.pkd(ours[1], theirs[2]),
        "fsp": hidden.fsp((ours[0], ours[2]), (theirs[0], theirs[4]), mask),
        "nst": hidden.nst((ours[0], ours[2]), (theirs[0], theirs[4]), mask),
        "cka": hidden.cka(ours[1], theirs[2], mask),
    }
    for loss, expected in cases.items():
        two = loss in ("fsp", "nst")
        entry = {"teacher": [0, 4] if two else 2, "student": [0, 2] if two else 1, "loss": loss, "weight": 3}
        sums = found(objective_of(entry, student, teacher), student, teacher)
        assert sums.terms["match_0"].item() == pytest.approx(expected.item(), rel=1e-4), loss
        assert sums.loss.item() == pytest.approx(3 * expected.item(), rel=1e-4)


def swapped_states(model, block, swap):
    """States after every block of a second pass whose hook overwrites the output of one, and after the embeddings."""
    layers, width = model.base_model.encoder.layer, batch().input_ids.shape[1]
    sources = outputs(model).hidden_states[block + 1]
    rows = [(places // width, places % width) for places in (swap.base, swap.source)]
    states, handles = [], []

    def record(_, __, output):
        states.append((output[0] if isinstance(output, tuple) else output).clone())

    def overwrite(_, __, output):
        (output[0] if isinstance(output, tuple) else output)[rows[0]] = sources[rows[1]]

    handles.append(layers[block].register_forward_hook(overwrite))
    handles += [module.register_forward_hook(record) for module in (model.base_model.embeddings, *layers)]
    outputs(model)
    for handle in handles:
        handle.remove()
    return states


def test_states_after_an_intervention_are_those_of_a_second_pass():
    """The patience loss on counterfactual states of Causal-Distill-XXS, before, at and behind the swapped block."""
    teacher, student = bert(0, 4), bert(1, 3)
    exchange = Interchange(read_mappings("single_middle", backbone_of(teacher), backbone_of(student)))
    assert [site.block for side in (exchange.mappings[0].teacher, exchange.mappings[0].student) for site in side] == [
        2,
        1,
    ]
    micro = batch()
    micro.swap = Swap(torch.tensor([0, 7 + 2, 14, 3 * 7 + 6]), torch.tensor([7, 3 * 7 + 1, 0, 4 * 7 + 5]))
    micro.reached = micro.attention_mask.bool()
    theirs, ours = (swapped_states(model, block, micro.swap) for model, block in ((teacher, 2), (student, 1)))
    entries = [
        {"name": f"{loss}_{t}_{s}", "teacher": t, "student": s, "loss": loss, "run": "counterfactual"}
        for loss in ("pkd", "hidden_mse", "cka")
        for t, s in ((0, 0), (2, 1), (3, 2), (4, 3))
    ]
    base = {"name": "base", "teacher": 4, "student": 3, "loss": "pkd"}
    objective = objective_of([*entries, base], student, teacher, interchange=exchange)
    sums = found(objective, student, teacher, micro=micro)
    for entry in entries:
        pair = ours[entry["student"]], theirs[entry["teacher"]]
        function = {"pkd": hidden.pkd, "hidden_mse": hidden.hidden_mse, "cka": hidden.cka}[entry["loss"]]
        expected = function(*pair, *([] if entry["loss"] == "pkd" else [micro.attention_mask]))
        assert sums.terms[f"match_{entry['name']}"].item() == pytest.approx(expected.item(), rel=1e-4), entry["name"]
    plain = hidden.pkd(*(outputs(model).hidden_states[-1] for model in (student, teacher)))
    assert sums.terms["match_base"].item() == pytest.approx(plain.item(), rel=1e-4)
    assert sums.terms["match_pkd_4_3"].item() != pytest.approx(plain.item(), rel=1e-2)


def test_attention_scores_and_relations_are_those_before_the_softmax():
    teacher, student = bert(0, 4), bert(1, 2)
    mask, ours, theirs = batch().attention_mask, scores_by_hooks(student, 1), scores_by_hooks(teacher, 3)
    weights = ours.masked_fill(mask[:, None, None] == 0, -1e9).softmax(-1)
    torch.testing.assert_close(weights, outputs(student).attentions[0], atol=1e-5, rtol=1e-4)
    for loss in ("attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean"):
        expected = getattr(attention, loss)(ours, theirs, mask)
        objective = objective_of({"teacher": 3, "student": 1, "loss": loss}, student, teacher)
        assert found(objective, student, teacher).terms["match_0"].item() == pytest.approx(expected.item(), rel=1e-4)
    ours, theirs = (
        {p: scores_by_hooks(m, k, p) for p in ("query", "key", "value")} for m, k in ((student, 2), (teacher, 4))
    )
    for loss, one, other in (("relation_vv", "value", None), ("relation_qk", "query", "key")):
        keys = {"student_keys_BLD": ours[other], "teacher_keys_BLE": theirs[other]} if other else {}
        expected = relation_kl(ours[one], theirs[one], mask, heads=4, **keys)
        entry = {"teacher": 4, "student": 2, "loss": loss, "heads": 4}
        objective = objective_of(entry, student, teacher)
        assert found(objective, student, teacher).terms["match_0"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_earth_movers_distance_of_all_layers():
    pytest.importorskip("ot")
    teacher, student = bert(0, 4), bert(1, 2)
    mask, ours, theirs = (batch().attention_mask, outputs(student).hidden_states, outputs(teacher).hidden_states)
    costs = layer_costs(ours[1:], theirs[1:], lambda s, t: hidden.hidden_mse(s, t, mask))
    expected = earth_movers_distance(costs, transport_plan(costs))
    value = found(objective_of({"loss": "emd"}, student, teacher), student, teacher).terms["match_0"]
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    scores = found(objective_of({"loss": "emd", "feature": "attention"}, student, teacher), student, teacher)
    assert 0 < scores.terms["match_0"] != value


def test_the_earth_movers_distance_under_a_projection_for_each_layer():
    pytest.importorskip("ot")
    teacher, student = bert(0, 4), bert(1, 2, width=8)
    objective = objective_of({"loss": "emd", "projection": "linear"}, student, teacher)
    made = objective.matches.projections["0"]
    mask, ours, theirs = (batch().attention_mask, outputs(student).hidden_states, outputs(teacher).hidden_states)
    projected = [project(own) for project, own in zip(made, ours[1:], strict=True)]
    costs = layer_costs(projected, theirs[1:], lambda s, t: hidden.hidden_mse(s, t, mask))
    expected = earth_movers_distance(costs, transport_plan(costs))
    value = found(objective, student, teacher).terms["match_0"]
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("loss", ["attention_mse", "attention_ce"])
def test_the_published_rule_of_attention_counts_padding(loss):
    teacher, student = bert(0, 4), bert(1, 2)
    objective = objective_of({"teacher": 3, "student": 1, "loss": loss, "published": True}, student, teacher)
    value = found(objective, student, teacher).terms["match_0"].item()
    padded = (1 - batch().attention_mask[:, None, None]) * -10000.0
    ours, theirs = (scores_of(model, block) + padded for model, block in ((student, 1), (teacher, 3)))
    if loss == "attention_mse":
        kept = [torch.where(side <= -1e-3, torch.zeros_like(side), side) for side in (ours, theirs)]
        expected = torch.nn.functional.mse_loss(*kept)
    else:
        targets = torch.where(theirs <= -1e-3, torch.zeros_like(theirs), theirs.softmax(-1))
        expected = -(targets * ours.log_softmax(-1)).sum(-1).mean()
    assert value == pytest.approx(expected.item(), rel=1e-4)
    parts = [share_of(objective, student, [teacher], batch(rows), objective.denominators(STEP)).terms["match_0"]
             for rows in (slice(0, 3), slice(3, 6))]  # fmt: skip
    assert float(sum(parts)) == pytest.approx(value, rel=1e-4)  # both parts are padded to one length


def scores_of(model, block):
    """Attention scores of a block before the softmax, from its queries and keys."""
    layer = model.bert.encoder.layer[block - 1].attention.self
    with torch.no_grad():
        states = outputs(model).hidden_states[block - 1]
        query, key = (
            part(states).unflatten(-1, (2, -1)).transpose(1, 2) for part in (layer.query, layer.key)
        )  # fmt: skip
    return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5


ALL = [
    {"teacher": 4, "student": 2, "loss": "hidden_mse", "projection": "tanh"},
    {"teacher": 0, "student": 0, "loss": "cos", "projection": "linear"},
    {"teacher": 4, "student": 2, "loss": "pkd", "projection": "relu"},
    {"teacher": [1, 4], "student": [0, 2], "loss": "nst"},
    {"teacher": [1, 4], "student": [0, 2], "loss": "fsp", "projection": "linear"},
    {"teacher": 3, "student": 1, "loss": "attention_ce"},
    {"teacher": 3, "student": 1, "loss": "relation_kk"},
    {
        "module": {"teacher": "encoder.layer.3.output", "student": "encoder.layer.0.intermediate"},
        "loss": "hidden_mse",
        "projection": "linear",
    },
]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_a_batch_cut_differently_gives_the_same_loss_and_gradients(attn):
    teacher, student = bert(0, 4, attn=attn), bert(1, 2, width=8, attn=attn)
    objective = objective_of(ALL, student, teacher)
    projections = objective.matches.projections

    def update(*cuts):
        for module in (student, projections):
            module.zero_grad()
        total = sum(found(objective, student, teacher, micro=batch(cut)).loss for cut in cuts)
        total.backward()
        return total.detach(), [
            p.grad.clone() for m in (student.base_model.encoder, projections) for p in m.parameters()
        ]

    whole, grads = update(slice(None))
    cut, cut_grads = update(slice(0, 2), slice(2, 6))
    torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-5)
    for one, other in zip(grads, cut_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert sum(bool(grad.any()) for grad in grads) == len(grads)
    assert all(p.grad is None for p in teacher.parameters())


def test_other_architectures_and_module_outputs():
    teacher = bert(0, 2)
    torch.manual_seed(1)
    config = DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=16, max_position_embeddings=16)
    student = DistilBertForSequenceClassification(config).eval()
    one = {"teacher": 2, "student": 1, "loss": "attention_mse"}
    module = {"module": {"teacher": "encoder.layer.0.output", "student": "transformer.layer.0.ffn"}, "loss": "cos"}
    sums = found(objective_of([one, module], student, teacher), student, teacher)
    assert all(value > 0 for value in sums.terms.values())
    same = found(
        objective_of([one | {"student": 2}, {"module": "encoder.layer.0.output", "loss": "cos"}], teacher, teacher),
        teacher,
        teacher,
    )
    assert all(abs(value) < 1e-6 for value in same.terms.values())
    for name, problem in (
        ("encoder.layer.9", "encoder.layer.9; .* encoder.layer.0.attention"),
        ("encoder.layer.0.attention.self.dropout", "encoder.layer.0.attention.self.dropout .* nothing"),
    ):
        with pytest.raises(ConfigError, match=f"^objective.matches: .*{problem}"):
            objective_of({"module": name, "loss": "cos"}, bert(1, 2, attn="sdpa"), bert(0, 2, attn="sdpa"))
    with pytest.raises(PairError, match=r"^objective.matches\[0\].loss=cos: .* 8 .* 16; .*projection=linear"):
        objective_of({"module": "encoder.layer.0.output", "loss": "cos"}, bert(1, 2, 8), teacher)


def test_nothing_is_hooked_and_no_block_is_run_that_no_match_reads():
    teacher, student = bert(0, 4), bert(1, 2)
    objective = objective_of({"teacher": 2, "student": 1, "loss": "attention_mse"}, student, teacher)
    ran = []
    for number, layer in enumerate(teacher.bert.encoder.layer):
        layer.register_forward_hook(lambda *_, n=number: ran.append(n))
    found(objective, student, teacher)
    assert ran == [0, 1]
    query = teacher.bert.encoder.layer[1].attention.self.query
    assert not query._forward_hooks
    plain = TaskObjective("classification")
    assert plain.wanted(None).keep == frozenset()


def test_a_match_reads_the_teacher_that_it_names_and_soft_targets_their_mean():
    one, two, student = bert(0, 2), bert(1, 4), bert(2, 2)
    entry = {"teacher": 4, "student": 2, "loss": "hidden_mse", "teacher_index": 1}
    objective = objective_of(entry, student, one, two)
    expected = found(objective_of(entry | {"teacher_index": 0}, student, two), student, two).terms["match_0"]
    torch.testing.assert_close(found(objective, student, one, two).terms["match_0"], expected)
    soft = TaskObjective("classification", {"ce": 1.0}, 2.0)
    both = found(soft, student, one, two).terms["ce"]
    mean = (outputs(one).logits + outputs(two).logits) / 2
    assert both.item() == pytest.approx(kl_divergence(outputs(student).logits, mean, 2.0).item(), rel=1e-4)


def test_weights_of_a_step():
    teacher, student = bert(0, 2), bert(1, 2)
    entry = {"teacher": 1, "student": 1, "loss": "cos", "weight": 1, "schedule": "linear", "end": 3, "steps": 2}
    base = objective_of(entry, student, teacher)
    objective = TaskObjective(
        "classification", {**base.weights, "label": 1.0}, matches=base.matches,
        schedules={**base.matches.schedules, "label": WeightSchedule("linear", 1.0, 0.0, 2)},
    )  # fmt: skip
    values = found(base, student, teacher).terms["match_0"]
    assert objective.active == ("match_0", "label")
    at = [objective.at(step, 9) for step in range(3)]
    assert [own.weights for own in at] == [
        {"match_0": 1.0, "label": 1.0}, {"match_0": 2.0, "label": 0.5}, {"match_0": 3.0, "label": 0.0},
    ]  # fmt: skip
    end = share_of(at[2], student, [teacher], batch(), objective.denominators(STEP))
    assert end.loss.item() == pytest.approx(3 * values.item(), rel=1e-5)
    assert at[1].only("label").active == ("label",)


def test_matches_of_language_models():
    teacher, student = bert(0, 4, heads=BertForMaskedLM), bert(1, 2, heads=BertForMaskedLM)
    micro = batch()
    labels = torch.full((30,), IGNORED)
    labels[::5] = 7
    positions = micro.attention_mask.flatten().nonzero()[:, 0]
    given = MicroBatch(micro.input_ids, micro.attention_mask, positions, labels)
    step = StepBatch([given], tokens=30, labelled=6, sequences=6, pairs=STEP.pairs)
    base = objective_of(
        [{"teacher": 4, "student": 2, "loss": "hidden_mse"}, {"teacher": 3, "student": 1, "loss": "attention_mse"}],
        student,
        teacher,
    )
    objective = LanguageObjective("masked", {"mlm": 1.0, **base.weights}, matches=base.matches)
    sums = objective(backbone_of(student), backbone_of(teacher), given, objective.denominators(step))
    expected = found(base, student, teacher)
    for term in base.weights:
        torch.testing.assert_close(sums.terms[term], expected.terms[term])
    assert sums.loss.item() == pytest.approx(sum(v.item() for v in sums.terms.values()), rel=1e-5)
    sums.loss.backward()
    assert all(p.grad is not None for p in student.bert.encoder.parameters())


def test_projections_are_a_function_of_the_seed():
    teacher, student = bert(0, 2), bert(1, 2, width=8)
    entry = {"teacher": 1, "student": 1, "loss": "hidden_mse", "projection": "linear", "projection_lr": 0.5}
    read = read_matches(entry, [backbone_of(teacher).spec], backbone_of(student).spec)
    made = [Matches(read, [backbone_of(teacher)], backbone_of(student), seed=seed) for seed in (1, 1, 2)]
    weights = [own.projections["0"].weight for own in made]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].shape == (16, 8)
    assert made[0].rates == {"0": 0.5}
    assert made[0].counts(SimpleNamespace(tokens=3, pairs=5, sequences=2)) == {"match_0": 3}


def swapping_batch(crossway):
    micro, sources = batch(slice(0, 3)), batch(slice(3, 6))
    at = torch.tensor([0, 1, 8, 15])
    micro.swap = Swap(at, at + 1)
    micro.sources = sources
    micro.reached, sources.reached = micro.attention_mask.bool(), sources.attention_mask.bool()
    return micro, [micro, sources] if crossway else [micro]


@pytest.mark.parametrize("crossway", [False, True])
@pytest.mark.parametrize("data_augment", [False, True])
def test_matches_read_the_base_runs_where_states_are_swapped_too(crossway, data_augment):
    teacher, student = bert(0, 4), bert(1, 2)
    entries = [
        {"teacher": 4, "student": 2, "loss": "hidden_mse"},
        {"teacher": 4, "student": 2, "loss": "attention_mse"},
        {"module": {"teacher": "encoder.layer.3.output", "student": "encoder.layer.1.output"}, "loss": "cos"},
    ]
    base = objective_of(entries, student, teacher)
    exchange = Interchange(
        read_mappings("single_middle", backbone_of(teacher), backbone_of(student)), crossway=crossway,
        data_augment=data_augment,
    )  # fmt: skip
    objective = TaskObjective("classification", {"causal_ce": 1.0, **base.weights}, 2.0, exchange, matches=base.matches)
    micro, parts = swapping_batch(crossway)
    denominators = dict.fromkeys(objective.weights, 1.0)
    sums = share_of(objective, student, [teacher], micro, denominators)
    alone = [share_of(base, student, [teacher], part, denominators).terms for part in parts]
    for term in base.weights:
        torch.testing.assert_close(sums.terms[term], sum(one[term] for one in alone))
    assert sums.terms["causal_ce"] > 0


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointed_blocks_give_the_same_gradients(mode):
    teacher, plain, checkpointed = bert(0, 4), bert(1, 2), bert(1, 2)
    set_checkpointing(checkpointed, mode)
    entries = [
        {"teacher": 3, "student": 1, "loss": "attention_ce"},
        {"teacher": 4, "student": 2, "loss": "relation_vv"},
    ]
    grads = []
    for student in (plain, checkpointed):
        for module in student.modules():
            module.train()
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        found(objective_of(entries, student, teacher), student, teacher).loss.backward()
        grads.append([p.grad for p in student.bert.encoder.parameters()])
    assert sum(grad is not None for grad in grads[0]) > 10
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
