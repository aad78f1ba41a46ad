"""Decoder-only students agree with a dense loss over single rows, and with transformers' own generation."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from potstill.losses.vocabulary import vocabulary_losses
from potstill.models.decoder import Decoder, writer_of
from potstill.models.seq2seq import Seq2Seq, seq2seq_from_config
from potstill.models.students import student_from_config

END = 1
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
         "max_position_embeddings": 40, "initializer_range": 0.5}  # fmt: skip
CASES = {
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 40,
             "initializer_range": 0.5},
    "llama": {"model_type": "llama", **SHAPE, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "mistral-window": {"model_type": "mistral", **SHAPE, "num_key_value_heads": 2, "sliding_window": 4},
    "qwen2": {"model_type": "qwen2", **SHAPE, "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", **SHAPE, "num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": {"model_type": "gpt_neox", **SHAPE},
    "olmo2": {"model_type": "olmo2", **SHAPE},
    "gemma3": {"model_type": "gemma3_text", **SHAPE, "head_dim": 4, "num_key_value_heads": 2, "sliding_window": 4,
               "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip
PROMPTS = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14, 1]]  # one has the end token in it
TARGETS = [[[20, 21, END], [22, END], [23, END]], [[24, 25, 26, 27, END], [28, 29, END], [30, END]]]  # of two tasks


def padded(rows, value):
    return torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, rows)), batch_first=True, padding_value=value)


IDS = padded(PROMPTS, END)  # without a padding token it is the end token, and the mask tells them apart
MASK = padded([[1] * len(row) for row in PROMPTS], 0)


def student_of(case):
    torch.manual_seed(0)
    settings = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if case == "gpt2" else {}
    settings = {**CASES[case], **settings}
    student = student_from_config(settings, vocab_size=40, pad_token_id=None, bos_token_id=END, eos_token_id=END)
    student.generation_config.eos_token_id = [END]
    return student.train()


def row_loss(student, prompt, target):
    """The definition: cross entropy at the target's tokens of one sequence without padding, summed, nats."""
    logits = student(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1]
    return cross_entropy(logits, torch.tensor(target), reduction="sum")


def part_of(rows, task):
    return torch.tensor(rows), padded([TARGETS[task][row] for row in rows], -100)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_of_a_padded_batch_equal_those_of_single_rows(case):
    student, view = student_of(case), Decoder(student_of(case))
    chosen = ([0, 1, 2], 0), ([2, 0, 0], 1)  # a row may have several targets
    expected = sum(row_loss(student, PROMPTS[r], TARGETS[task][r]) for rows, task in chosen for r in rows)
    expected.backward()
    parts = [part_of(*own) for own in chosen]
    states, tied = view.read(IDS, MASK, parts)
    assert [len(part) for part in states] == [int(target.ge(0).sum()) for _, target in parts]
    labels = torch.cat([target[target.ge(0)] for _, target in parts])
    one = {"nll": 1.0}
    losses = vocabulary_losses(
        torch.cat(states), *view.projection, labels_N=labels, weights=one, denominators=one, tied=tied
    )
    losses.total.backward()
    assert torch.allclose(losses.total, expected, rtol=1e-5)
    for (name, found), own in zip(view.model.named_parameters(), student.parameters(), strict=True):
        assert torch.allclose(found.grad, own.grad, rtol=1e-3, atol=1e-4), name
    end = losses.rows["nll"][labels == END]
    assert len(end) == 6  # the end token is learned in every target, also where it is the padding too


@pytest.mark.parametrize("case", CASES)
def test_scores_of_cached_prompts_equal_those_of_whole_sequences(case):
    student = student_of(case).eval()
    view = writer_of(student)
    assert isinstance(view, Decoder)
    context = view.context(IDS, MASK)
    for rows, task in (([0, 1, 2], 0), ([0, 0, 2], 1), ([1], 1)):
        own, target = part_of(rows, task)
        with torch.no_grad():
            expected = torch.stack([-row_loss(student, PROMPTS[r], TARGETS[task][r]) for r in rows])
        assert torch.allclose(view.score(context, own, target), expected, atol=1e-3), (rows, task)
    (row,), target = part_of([1], 0)
    assert torch.allclose(view.score(context, slice(1, 2), target), view.score(context, row[None], target))


@pytest.mark.parametrize("case", CASES)
def test_generation_of_a_padded_batch_equals_that_of_single_rows(case):
    student = student_of(case).eval()
    view = Decoder(student)
    context = view.context(IDS, MASK)
    written = view.write(context, slice(None), 12)
    assert len(set(written.flatten().tolist())) > 2
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        expected = student.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        own = expected[0, len(prompt) :].tolist()
        assert written[row].tolist() == own + [END] * (written.shape[1] - len(own))
    assert torch.equal(view.write(context, torch.tensor([2, 0]), 12), written[[2, 0]][:, : written.shape[1]])
    row = next(row for row in range(3) if END not in written[row, :3].tolist())
    stop = written[row, 1:3].tolist()
    first = next(at for at in range(12) if written[row, at : at + 2].tolist() == stop)
    assert view.write(context, slice(row, row + 1), 12, stop).tolist() == [written[row, : first + 2].tolist()]


def test_the_kind_of_a_student_is_that_of_its_configuration():
    shape = {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    assert isinstance(writer_of(seq2seq_from_config(shape, vocab_size=9, pad_token_id=0, eos_token_id=1)), Seq2Seq)
