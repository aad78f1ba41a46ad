import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification, BertForTokenClassification

from potstill.data.tasks.datamodule import TaskBatch, TaskStep
from potstill.interchange.agreement import class_agreement
from potstill.interchange.intervene import Swap
from potstill.interchange.mappings import read_mappings
from potstill.losses.hidden import cosine_distance
from potstill.losses.soft_targets import kl_divergence, logit_mse
from potstill.models.backbone import backbone_of
from potstill.objectives.interchange import Interchange
from potstill.objectives.soft_targets import SoftTargets, TeacherMean
from potstill.objectives.task import (
    ModelReader,
    StoredReader,
    TaskObjective,
    distributions_of,
    predictions_of,
    reached_of,
)

BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def batch(labels):
    ids = torch.randint(5, 40, (6, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([7, 5, 3, 7, 6, 2])[:, None]).long()
    types = (torch.arange(7) > 2).long().expand(6, 7) * mask
    return TaskBatch(ids, mask, types, labels, torch.arange(6))


def share_of(objective, student, teachers, micro, denominators):
    kind, exchange = objective.kind, objective.interchange
    readers = [ModelReader(backbone_of(own), kind, exchange, number) for number, own in enumerate(teachers)]
    return objective(ModelReader(backbone_of(student), kind, exchange), readers, micro, denominators)


def part(micro, rows):
    own = ("input_ids", "attention_mask", "token_type_ids", "labels", "rows")
    return TaskBatch(*(getattr(micro, name)[rows] for name in own))


@pytest.mark.parametrize(
    ("kind", "outputs", "labels"),
    [
        ("classification", 3, torch.tensor([0, 2, 1, 1, 0, 2])),
        ("regression", 1, torch.tensor([0.5, 2.0, 4.5, 1.0, 0.0, 3.0])),
    ],
)
def test_the_shares_of_a_step_add_up_to_the_loss_of_transformers(kind, outputs, labels):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**BERT, intermediate_size=16, num_labels=outputs)).eval()
    whole = batch(labels)
    expected = model(
        input_ids=whole.input_ids, attention_mask=whole.attention_mask, token_type_ids=whole.token_type_ids,
        labels=labels,
    ).loss  # fmt: skip
    objective = TaskObjective(kind)
    micro = [part(whole, slice(0, 4)), part(whole, slice(4, 6))]
    denominators = objective.denominators(TaskStep(micro, predictions=6, tokens=30))
    shares = [share_of(objective, model, [], one, denominators) for one in micro]
    torch.testing.assert_close(sum(share.loss for share in shares), expected)
    torch.testing.assert_close(sum(share.terms["label"] for share in shares), expected.detach())
    assert not shares[0].terms["label"].requires_grad


def sets_pair():
    torch.manual_seed(0)
    shape = BertConfig(**BERT, intermediate_size=16, num_labels=3, problem_type="multi_label_classification")
    return [BertForSequenceClassification(shape).eval() for _ in range(3)]


SETS = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]])


def inputs_of(micro):
    return {
        "input_ids": micro.input_ids, "attention_mask": micro.attention_mask, "token_type_ids": micro.token_type_ids,
    }  # fmt: skip


def test_the_label_term_of_sets_is_the_loss_of_transformers():
    model, *_ = sets_pair()
    whole = batch(SETS)
    expected = model(**inputs_of(whole), labels=SETS.float()).loss
    objective = TaskObjective("multi_label")
    micro = [part(whole, slice(0, 4)), part(whole, slice(4, 6))]
    denominators = objective.denominators(TaskStep(micro, predictions=18, tokens=30))
    shares = [share_of(objective, model, [], one, denominators) for one in micro]
    torch.testing.assert_close(sum(share.loss for share in shares), expected)


def binary_kl(teacher, student):
    """KL of Bernoulli distributions, the mean over rows and labels."""
    p, q = teacher.double(), student.double()
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean().float()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_of_sets_are_binary(temperature):
    student, *teachers = sets_pair()
    whole = batch(SETS)
    logits, *targets = (model(**inputs_of(whole)).logits for model in (student, *teachers))
    mean = sum(targets) / 2
    p, q, t = (mean / temperature).sigmoid(), (logits / temperature).sigmoid(), temperature
    right = torch.where((mean > 0) == SETS.bool(), mean, -mean)  # the shift: a wrong label's sign turns
    shares = sum((one / t).sigmoid() for one in targets) / 2
    expected = {
        SoftTargets(): t**2 * binary_kl(p, q),
        SoftTargets("reverse_kl"): t**2 * binary_kl(q, p),
        SoftTargets("cross_entropy"): torch.nn.functional.binary_cross_entropy(q, p),
        SoftTargets("mse"): ((logits - mean) / t).square().mean(),
        SoftTargets("mse", shift=True): ((logits - right) / t).square().mean(),
        SoftTargets(shift=True): t**2 * binary_kl((right / t).sigmoid(), q),
    }
    denominators = {"ce": 18.0, "mse": 18.0}
    for soft, value in expected.items():
        objective = TaskObjective("multi_label", {"ce": 1.0, "mse": 1.0}, t, soft=soft)
        terms = share_of(objective, student, teachers, whole, denominators).terms
        torch.testing.assert_close(terms["ce"], value.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(terms["mse"], (logits - mean).square().mean().detach(), rtol=1e-4, atol=1e-6)
    averaged = TaskObjective("multi_label", {"ce": 1.0}, t, mean=TeacherMean(of="probabilities"))
    found = share_of(averaged, student, teachers, whole, denominators).terms["ce"]
    torch.testing.assert_close(found, (t**2 * binary_kl(shares, q)).detach(), rtol=1e-4, atol=1e-6)
    stored = [StoredReader(lambda rows, own=own: own[rows], "multi_label") for own in targets]
    plain = TaskObjective("multi_label", {"ce": 1.0}, t)
    found = plain(ModelReader(backbone_of(student), "multi_label"), stored, whole, denominators).terms["ce"]
    torch.testing.assert_close(found, (t**2 * binary_kl(p, q)).detach(), rtol=1e-4, atol=1e-6)


def test_a_teacher_of_another_tokenizer_reads_its_own_tokens_of_the_same_rows():
    torch.manual_seed(0)
    student = BertForSequenceClassification(BertConfig(**BERT, intermediate_size=16, num_labels=3)).eval()
    wide = {**BERT, "vocab_size": 90, "hidden_size": 24}
    teachers = [
        BertForSequenceClassification(BertConfig(**shape, intermediate_size=16, num_labels=3)).eval()
        for shape in (BERT, wide)
    ]
    whole = batch(torch.tensor([0, 2, 1, 1, 0, 2]))
    ids = torch.randint(40, 90, (6, 11))
    mask = (torch.arange(11) < torch.tensor([3, 11, 8, 4, 9, 10])[:, None]).long()
    whole.teachers = [None, TaskBatch(ids, mask, None, None, whole.rows)]
    objective = TaskObjective("classification", {"ce": 1.0}, temperature=2.0)
    share = share_of(objective, student, teachers, whole, {"ce": 6.0})
    inputs = {
        "input_ids": whole.input_ids, "attention_mask": whole.attention_mask, "token_type_ids": whole.token_type_ids,
    }  # fmt: skip
    targets = (teachers[0](**inputs).logits + teachers[1](input_ids=ids, attention_mask=mask).logits) / 2
    expected = kl_divergence(student(**inputs).logits, targets, temperature=2.0, denominator=6.0)
    torch.testing.assert_close(share.loss, expected)


def words_of(labels):
    """A token is the first of a word where it has a label."""
    numbers = torch.arange(labels.numel()).view(labels.shape)
    return numbers.where(labels >= 0, torch.full_like(numbers, -1))


def test_the_loss_of_token_labels_is_that_of_transformers():
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(**BERT, intermediate_size=16, num_labels=3)).eval()
    whole = batch(None)
    labels = torch.randint(0, 3, (6, 7)).masked_fill(whole.attention_mask == 0, -100)
    labels[:, 1::2] = -100
    inputs = {"input_ids": whole.input_ids, "attention_mask": whole.attention_mask}
    expected = model(**inputs, token_type_ids=whole.token_type_ids, labels=labels).loss
    whole.labels, whole.words = labels, words_of(labels)
    objective = TaskObjective("tokens")
    micro = [part(whole, slice(0, 4)), part(whole, slice(4, 6))]
    for own, rows in zip(micro, (slice(0, 4), slice(4, 6)), strict=True):
        own.words = whole.words[rows]
    step = TaskStep(micro, predictions=int((labels >= 0).sum()), tokens=30)
    shares = [share_of(objective, model, [], one, objective.denominators(step)) for one in micro]
    torch.testing.assert_close(sum(share.loss for share in shares), expected)


def test_the_loss_of_answer_ends_is_that_of_transformers_and_excludes_padding():
    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(**BERT, intermediate_size=16)).eval()
    whole = batch(torch.tensor([[1, 2], [0, 0], [2, 2], [3, 6], [1, 5], [0, 1]]))
    whole.attention_mask = torch.ones_like(whole.attention_mask)
    expected = model(
        input_ids=whole.input_ids, token_type_ids=whole.token_type_ids,
        start_positions=whole.labels[:, 0], end_positions=whole.labels[:, 1],
    ).loss  # fmt: skip
    objective = TaskObjective("spans")
    micro = [part(whole, slice(0, 4)), part(whole, slice(4, 6))]
    denominators = objective.denominators(TaskStep(micro, predictions=12, tokens=42))
    shares = [share_of(objective, model, [], one, denominators) for one in micro]
    torch.testing.assert_close(sum(share.loss for share in shares), expected)
    whole.attention_mask[2, 3:] = 0
    hidden = torch.randn(6, 7, 16)
    shares_NC = predictions_of(backbone_of(model), hidden, whole).softmax(-1)
    assert shares_NC.shape == (12, 7)
    assert (shares_NC[4:6, 3:] == 0).all()
    assert (shares_NC[:4] > 0).all()


@pytest.mark.parametrize("kind", ["tokens", "spans"])
def test_soft_and_counterfactual_terms_of_tokens_and_spans(kind):
    torch.manual_seed(0)
    heads = {"tokens": BertForTokenClassification, "spans": BertForQuestionAnswering}
    config = BertConfig(
        **BERT | {"num_hidden_layers": 2}, intermediate_size=16, num_labels=3 if kind == "tokens" else 2
    )
    teacher, student = heads[kind](config).eval(), heads[kind](config).eval()
    micro = swapping(batch(None))
    if kind == "tokens":
        labels = torch.randint(0, 3, (6, 7)).masked_fill(micro.attention_mask == 0, -100)
        labels[:, 2] = -100
        micro.labels, micro.words = labels, words_of(labels)
    else:
        micro.labels = torch.zeros(6, 2, dtype=torch.long)
    exchange = Interchange(read_mappings("single_middle", backbone_of(teacher), backbone_of(student)))
    objective = TaskObjective(kind, TERMS, 3.0, exchange)
    found = share_of(objective, student, [teacher], micro, dict.fromkeys(TERMS, 1.0))
    _, theirs = hooked(teacher, micro, exchange.mappings[0].teacher[0].block)
    _, ours = hooked(student, micro, exchange.mappings[0].student[0].block)
    if kind == "tokens":
        wanted = micro.reached & (micro.words >= 0)
        expected = kl_divergence(ours[wanted], theirs[wanted], 3.0, denominator=1.0)
    else:
        rows, far = micro.reached.any(1), micro.attention_mask[..., None] == 0
        ours, theirs = (x.masked_fill(far, -1e9)[rows].transpose(1, 2).flatten(0, 1) for x in (ours, theirs))
        expected = kl_divergence(ours, theirs, 3.0, denominator=1.0)
    assert found.terms["causal_ce"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert found.terms["ce"] > 0
    same = share_of(objective, teacher, [teacher], micro, dict.fromkeys(TERMS, 1.0))
    assert all(abs(value.item()) < 1e-3 for term, value in same.terms.items() if term != "label")


def test_the_squared_distance_of_answers_is_a_mean_over_their_tokens():
    torch.manual_seed(0)
    config = BertConfig(**BERT, intermediate_size=16, initializer_range=0.3)
    teacher, student = BertForQuestionAnswering(config).eval(), BertForQuestionAnswering(config).eval()
    micro = batch(torch.zeros(6, 2, dtype=torch.long))
    objective = TaskObjective("spans", {"ce": 1.0}, 4.0, soft=SoftTargets("mse"))
    found = share_of(objective, student, [teacher], micro, {"ce": 12})
    inputs = {name: getattr(micro, name) for name in ("input_ids", "attention_mask", "token_type_ids")}
    ours, theirs = student(**inputs), teacher(**inputs)
    expected = [
        (((getattr(ours, end)[row] - getattr(theirs, end)[row]) / 4)[: int(mask.sum())] ** 2).mean()
        for row, mask in enumerate(micro.attention_mask)
        for end in ("start_logits", "end_logits")
    ]
    torch.testing.assert_close(found.loss, torch.stack(expected).mean())


def test_tagged_words_can_be_compared_at_every_token():
    """As TextBrewer: soft targets at all real tokens, special ones included, while labels are of first tokens."""
    torch.manual_seed(0)
    config = BertConfig(**BERT | {"num_hidden_layers": 2}, intermediate_size=16, num_labels=3, initializer_range=0.3)
    teacher, student = BertForTokenClassification(config).eval(), BertForTokenClassification(config).eval()
    micro = swapping(batch(None))
    labels = torch.randint(0, 3, (6, 7)).masked_fill(micro.attention_mask == 0, -100)
    labels[:, ::2] = -100
    micro.labels, micro.words = labels, words_of(labels)
    exchange = Interchange(read_mappings("single_middle", backbone_of(teacher), backbone_of(student)))
    objective = TaskObjective("tokens", TERMS, 3.0, exchange, every_token=True)
    real, reached = micro.attention_mask.bool(), micro.reached
    counts = {"label": int((labels >= 0).sum()), "ce": 30, "mse": 30, "cos": 30}
    counts |= dict.fromkeys(("causal_ce", "causal_cos"), int(reached.sum()))
    step = TaskStep([micro], counts["label"], 30, reached=99, reached_tokens=counts["causal_ce"])
    assert objective.denominators(step) == counts
    readers = [ModelReader(backbone_of(own), "tokens", exchange, n, True) for n, own in ((None, student), (0, teacher))]
    found = objective(readers[0], readers[1:], micro, counts).terms
    inputs = {name: getattr(micro, name) for name in ("input_ids", "attention_mask", "token_type_ids")}
    ours, theirs = student(**inputs).logits[real], teacher(**inputs).logits[real]
    swapped = [
        hooked(model, micro, getattr(exchange.mappings[0], side)[0].block)[1][reached]
        for side, model in (("student", student), ("teacher", teacher))
    ]
    expected = {
        "label": student(**inputs, labels=labels).loss,
        "ce": kl_divergence(ours, theirs, 3.0, denominator=30),
        "mse": logit_mse(ours, theirs, denominator=30),
        "causal_ce": kl_divergence(*swapped, 3.0, denominator=counts["causal_ce"]),
    }
    for term, value in expected.items():
        assert found[term].item() == pytest.approx(value.item(), rel=1e-4), term


SWAPS = [((0, 2), (1, 4)), ((0, 3), (1, 0)), ((1, 1), (0, 6)), ((4, 0), (3, 5))]  # (row, column) takes that of


def pair(outputs=3):
    models = []
    for seed, depth in ((1, 4), (2, 2)):
        torch.manual_seed(seed)
        config = BertConfig(**{**BERT, "num_hidden_layers": depth}, intermediate_size=16, num_labels=outputs)
        config.initializer_range = 0.3
        models.append(BertForSequenceClassification(config).eval())
    return models


def swapping(micro):
    width = micro.input_ids.shape[1]
    base, source = (torch.tensor([row * width + column for row, column in side]) for side in zip(*SWAPS, strict=True))
    micro.swap = Swap(base, source)
    rows = torch.zeros(len(micro.rows), dtype=torch.bool)
    rows[[row for (row, _), _ in SWAPS]] = True
    micro.reached = micro.attention_mask.bool() & rows[:, None]
    return micro


def hooked(model, micro, block):
    """Last hidden states and logits of a full second pass whose hook writes what a first one recorded."""
    layer, recorded = model.bert.encoder.layer[block], []

    def write(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if not recorded:
            recorded.append(hidden.clone())
            return output
        flat = hidden.clone().flatten(0, 1)
        flat[micro.swap.base] = recorded[0].flatten(0, 1)[micro.swap.source]
        flat = flat.view_as(hidden)
        return (flat, *output[1:]) if isinstance(output, tuple) else flat

    inputs = {name: getattr(micro, name) for name in ("input_ids", "attention_mask", "token_type_ids")}
    handle = layer.register_forward_hook(write)
    with torch.no_grad():
        model(**inputs)
        output = model(**inputs, output_hidden_states=True)
    handle.remove()
    logits = output.get("logits")
    if logits is None:  # the ends of an answer
        logits = torch.stack([output.start_logits, output.end_logits], -1)
    return output.hidden_states[-1], logits


TERMS = {"label": 1.0, "ce": 0.5, "mse": 0.1, "cos": 0.25, "causal_ce": 2.0, "causal_cos": 0.5}


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_every_term_equals_the_textbook(kind):
    outputs = 3 if kind == "classification" else 1
    teacher, student = pair(outputs)
    labels = torch.tensor([0, 2, 1, 1, 0, 2]) if outputs == 3 else torch.rand(6)
    micro = swapping(batch(labels))
    one, two = backbone_of(teacher), backbone_of(student)
    exchange = Interchange(read_mappings("single_middle", one, two))
    objective = TaskObjective(kind, TERMS, 2.0, exchange)
    step = TaskStep([micro], 6, 30, reached=3, reached_tokens=int(micro.reached.sum()))
    found = share_of(objective, student, [teacher], micro, objective.denominators(step))
    inputs = {name: getattr(micro, name) for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        t, s = (model(**inputs, output_hidden_states=True) for model in (teacher, student))
    t_last, t_logits = hooked(teacher, micro, 2)
    s_last, s_logits = hooked(student, micro, 1)
    real, rows = micro.attention_mask.bool(), [0, 1, 4]

    def soft(ours, theirs):
        return kl_divergence(ours, theirs, 2.0) if outputs == 3 else logit_mse(ours, theirs)

    expected = {
        "ce": soft(s.logits, t.logits),
        "mse": logit_mse(s.logits, t.logits),
        "cos": cosine_distance(s.hidden_states[-1][real], t.hidden_states[-1][real]),
        "causal_ce": soft(s_logits[rows], t_logits[rows]),
        "causal_cos": cosine_distance(s_last[micro.reached], t_last[micro.reached]),
    }
    for term, value in expected.items():
        assert found.terms[term].item() == pytest.approx(value.item(), rel=1e-4), term
    assert found.loss.item() == pytest.approx(sum(TERMS[k] * v.item() for k, v in found.terms.items()), rel=1e-5)
    assert not torch.allclose(s_logits[rows], s.logits[rows], atol=1e-3)
    found.loss.backward()
    assert all(p.grad is not None for p in student.bert.encoder.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_class_agreement_equals_the_textbook():
    teacher, student = pair()
    micro = swapping(batch(None))
    mappings = read_mappings("grid", backbone_of(teacher), backbone_of(student))
    found = class_agreement(
        backbone_of(teacher), backbone_of(student), micro.input_ids, micro.attention_mask, micro.token_type_ids,
        micro.swap,
        lambda backbone, last: predictions_of(backbone, last, micro)[reached_of(micro, "classification")], mappings,
    )  # fmt: skip
    assert found.compared == 3
    for mapping, found_same, found_kl in zip(mappings, found.same_M, found.kl_M, strict=True):
        _, theirs = hooked(teacher, micro, mapping.teacher[0].block)
        _, ours = hooked(student, micro, mapping.student[0].block)
        theirs, ours = theirs[[0, 1, 4]], ours[[0, 1, 4]]
        assert found_same == (theirs.argmax(-1) == ours.argmax(-1)).sum()
        assert found_kl.item() == pytest.approx(3 * kl_divergence(ours, theirs, 1.0).item(), rel=1e-4)


def test_counterfactual_soft_targets_of_sets_are_binary():
    teacher, student = pair()
    rows, t = [0, 1, 4], 3.0
    micro = swapping(batch(SETS))
    mappings = read_mappings("grid", backbone_of(teacher), backbone_of(student))[:1]
    objective = TaskObjective("multi_label", {"causal_ce": 1.0}, t, Interchange(mappings))
    found = share_of(objective, student, [teacher], micro, {"causal_ce": 9.0}).terms["causal_ce"]
    _, theirs = hooked(teacher, micro, mappings[0].teacher[0].block)
    _, ours = hooked(student, micro, mappings[0].student[0].block)
    p, q = (theirs[rows] / t).sigmoid(), (ours[rows] / t).sigmoid()
    torch.testing.assert_close(found, (t**2 * binary_kl(p, q)).detach(), rtol=1e-4, atol=1e-6)
    found = class_agreement(
        backbone_of(teacher), backbone_of(student), micro.input_ids, micro.attention_mask, micro.token_type_ids,
        micro.swap,
        lambda backbone, last: distributions_of(
            "multi_label", predictions_of(backbone, last, micro)[reached_of(micro, "multi_label")]
        ),
        mappings,
    )  # fmt: skip
    assert found.compared == 9
    assert found.same_M[0] == ((theirs[rows] > 0) == (ours[rows] > 0)).sum()


def test_a_student_equal_to_the_teacher_has_no_loss_but_that_of_the_labels():
    teacher, _ = pair()
    backbone, micro = backbone_of(teacher), swapping(batch(torch.tensor([0, 2, 1, 1, 0, 2])))
    exchange = Interchange(read_mappings("multilayer", backbone, backbone))
    objective = TaskObjective("classification", TERMS, 3.0, exchange)
    found = share_of(objective, teacher, [teacher], micro, dict.fromkeys(TERMS, 1.0))
    assert all(abs(value.item()) < 1e-4 for term, value in found.terms.items() if term != "label")
