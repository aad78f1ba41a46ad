"""Encoder-decoders agree with transformers' own forward pass, gradient, generation and likelihood."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from potstill.errors import ConfigError, KeyNameError, WeightsError
from potstill.losses.vocabulary import vocabulary_losses
from potstill.models.asked import Asked, asked_of
from potstill.models.save import save_student
from potstill.models.seq2seq import Seq2Seq, load_seq2seq, seq2seq_from_config
from potstill.models.specs import read_settings

SHAPE = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
CASES = {
    "t5": {"model_type": "t5"},
    "t5_v1_1": {"model_type": "t5", "feed_forward_proj": "gated-gelu"},
    "mt5": {"model_type": "mt5"},
}
IDS = torch.tensor([[5, 6, 7, 8, 1], [9, 10, 1, 0, 0]])
MASK = IDS.ne(0).long()
LABELS = torch.tensor([[11, 12, 1], [13, 1, -100]])


def student_of(case, **more):
    torch.manual_seed(0)
    settings = {**CASES[case], **SHAPE, **more}
    student = seq2seq_from_config(settings, vocab_size=40, pad_token_id=0, eos_token_id=1)
    if case == "t5_v1_1":  # its projection is a weight of its own, and what goes into it is not scaled
        student.lm_head.weight = torch.nn.Parameter(torch.randn(40, SHAPE["d_model"]))
        student.config.scale_decoder_outputs = False
    return student


def loss_of(view, tied):
    view.tied = lambda: tied
    (states,), found = view.read(IDS, MASK, [(slice(None), LABELS)])
    assert found is tied
    real = LABELS.ge(0)
    return vocabulary_losses(
        states,
        *view.projection,
        labels_N=LABELS[real],
        weights={"nll": 1.0},
        denominators={"nll": int(real.sum())},
        tied=tied,
    ).total


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_those_of_transformers(case):
    student = student_of(case)
    view = Seq2Seq(student)
    expected = student(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    assert (view.tied() is None) == (case == "t5_v1_1")
    for tied in (view.tied(), None):
        student.zero_grad()
        loss = loss_of(view, tied)
        loss.backward()
        assert torch.allclose(loss, expected, rtol=1e-5)
        for name, parameter in student.named_parameters():
            assert torch.allclose(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("case", CASES)
def test_generation_equals_that_of_transformers(case):
    student = student_of(case, initializer_factor=3.0).eval()
    view = Seq2Seq(student)
    context = view.context(IDS, MASK)
    written = view.write(context, slice(None), 9)
    expected = student.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=9, num_beams=1)
    assert torch.equal(written, expected[:, 1:])
    assert len(set(written.flatten().tolist())) > 1
    stop = written[0, 2:4].tolist()  # a text of several tokens ends a row, and others go on
    first = next(at for at in range(9) if written[0, at : at + 2].tolist() == stop)
    assert view.write(context, slice(0, 1), 9, stop).tolist() == [written[0, : first + 2].tolist()]
    assert torch.equal(view.write(context, torch.tensor([1, 0]), 9, [0, 0, 0, 1]), written[[1, 0]])


def test_generation_settings_of_a_folder_are_ignored():
    student = student_of("t5", initializer_factor=3.0).eval()
    view = Seq2Seq(student)
    context = view.context(IDS, MASK)
    before = view.write(context, slice(None), 9)
    student.generation_config.update(
        num_beams=3, max_length=2, min_new_tokens=7, repetition_penalty=9.0, no_repeat_ngram_size=1,
        suppress_tokens=before[0, :2].tolist(),
    )  # fmt: skip
    assert torch.equal(view.write(context, slice(None), 9), before)
    assert student.generation_config.repetition_penalty == 9.0  # and are saved with the student


@pytest.mark.parametrize("layers", [1, 4])
def test_a_decoder_may_have_other_layers_than_the_encoder(layers):
    student = student_of("t5", num_decoder_layers=layers, initializer_factor=3.0).eval()
    view = Seq2Seq(student)
    context = view.context(IDS, MASK)
    expected = student.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=9, use_cache=False)
    assert torch.equal(view.write(context, slice(None), 9), expected[:, 1:])


def test_score_is_the_log_likelihood_of_whole_targets():
    student = student_of("t5").eval()
    view = Seq2Seq(student)
    with torch.no_grad():
        scores = view.score(view.context(IDS, MASK), slice(None), LABELS)
        logits = student(input_ids=IDS, attention_mask=MASK, labels=LABELS).logits
    expected = -cross_entropy(logits.transpose(1, 2), LABELS, reduction="none").sum(1)
    assert torch.allclose(scores, expected, atol=1e-4)


def test_a_student_is_saved_and_loaded_with_its_prefixes(tmp_path, t5_tokenizer):
    student = student_of("t5")
    asked = Asked({"predict": "predict: ", "explain": "why: "}, chat=False)
    asked.remember(student.config)
    save_student(student, t5_tokenizer, tmp_path / "student", "card")
    loaded = load_seq2seq("student.model", str(tmp_path / "student"))
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), loaded.parameters(), strict=True))
    settings = read_settings("student.model", str(tmp_path / "student"))
    assert asked_of(settings, "predict") == asked


def test_unknown_arguments_are_rejected():
    with pytest.raises(KeyNameError, match=r"^student.config.d_modell=3.*d_model"):
        student_of("t5", d_modell=3)


def test_an_incomplete_checkpoint_is_rejected(tmp_path, t5_tokenizer):
    from safetensors.torch import load_file, save_file

    save_student(student_of("t5"), t5_tokenizer, tmp_path / "student", "card")
    weights = tmp_path / "student" / "model.safetensors"
    kept = load_file(weights)
    del kept["encoder.final_layer_norm.weight"]
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"encoder\.final_layer_norm"):
        load_seq2seq("student.model", str(tmp_path / "student"))


def test_a_student_from_scratch_has_the_given_attention():
    shape = {"model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    made = {"vocab_size": 20, "pad_token_id": 0, "eos_token_id": 1}
    model = seq2seq_from_config(shape, **made, attention="eager")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match=r"^student.attention=nothing: .*t5"):
        seq2seq_from_config(shape, **made, attention="nothing")
