import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from potstill.data.tasks.datamodule import TaskBatch, TaskStep
from potstill.models.trunk import trunk_of
from potstill.objectives.task import TaskObjective

BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def batch(labels):
    ids = torch.randint(5, 40, (6, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([7, 5, 3, 7, 6, 2])[:, None]).long()
    types = (torch.arange(7) > 2).long().expand(6, 7) * mask
    return TaskBatch(ids, mask, types, labels, torch.arange(6))


def part(micro, rows):
    return TaskBatch(*(getattr(micro, name)[rows] for name in vars(micro)))


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
    denominators = objective.denominators(TaskStep(micro, examples=6, tokens=30))
    shares = [objective(trunk_of(model), one, denominators) for one in micro]
    torch.testing.assert_close(sum(share.loss for share in shares), expected)
    torch.testing.assert_close(sum(share.terms["label"] for share in shares), expected.detach())
    assert not shares[0].terms["label"].requires_grad
