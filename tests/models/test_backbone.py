import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    GPTNeoXConfig,
)

from potstill.errors import ModelError
from potstill.models.backbone import trunk_of
from potstill.models.specs import ARCHITECTURES
from potstill.models.views import VIEWS

PAD = 1
STANDARD = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
CASES = {
    "bert": ("bert", STANDARD),
    "roberta": ("roberta", STANDARD),
    "xlm-roberta": ("xlm-roberta", STANDARD),
    "camembert": ("camembert", STANDARD),
    "distilbert": ("distilbert", {"dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 24}),
    "electra": ("electra", STANDARD | {"embedding_size": 16}),
    "electra-narrow": ("electra", STANDARD | {"embedding_size": 8}),
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32}),
    "llama": ("llama", STANDARD | {"num_key_value_heads": 2, "attention_dropout": 0.1}),
    "llama-tied": ("llama", STANDARD | {"tie_word_embeddings": True}),
    "mistral": ("mistral", STANDARD | {"num_key_value_heads": 2, "sliding_window": None}),
    "mistral-window": ("mistral", STANDARD | {"num_key_value_heads": 2, "sliding_window": 3}),
    "qwen2": ("qwen2", STANDARD | {"num_key_value_heads": 2}),
    "qwen2-window": (
        "qwen2",
        STANDARD
        | {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
}


def tiny(case, attention="sdpa", auto=None, **further):
    model_type, settings = CASES[case]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=40, pad_token_id=PAD, bos_token_id=0, eos_token_id=2, **settings, **further
    )
    masked = ARCHITECTURES[model_type].kind == "masked"
    auto = auto or (AutoModelForMaskedLM if masked else AutoModelForCausalLM)
    model = auto.from_config(config, attn_implementation=attention).eval()
    # Fresh biases are zero and norms one: randomise, so that a forgotten one shows.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def padded_batch():
    generator = torch.Generator().manual_seed(3)
    input_ids = torch.randint(4, 40, (3, 9), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row, length in enumerate((9, 5, 7)):
        input_ids[row, length:] = PAD
        attention_mask[row, length:] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def encode(trunk, *inputs, keep=()):
    """Embed, run all blocks, finish: the last hidden states, and those after the blocks to keep."""
    hidden_BLD, kept = trunk.blocks(trunk.embed(*inputs), keep=keep)
    return trunk.finish(hidden_BLD), kept


def last_hidden(trunk, *inputs):
    return encode(trunk, *inputs)[0]


def logits_of(trunk, last_hidden_BLD):
    return torch.nn.functional.linear(trunk.head(last_hidden_BLD), *trunk.decoder)


def test_every_known_architecture_has_a_view_and_a_case():
    known = {model_type for model_type, _ in CASES.values()}
    assert set(VIEWS) == set(ARCHITECTURES) == known | {"bigru"}  # tests/models/test_bigru.py


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_agrees_with_the_whole_model(case, attention):
    model, batch = tiny(case, attention), padded_batch()
    trunk = trunk_of(model)
    expected = model(**batch, output_hidden_states=True)

    last, kept = encode(trunk, *batch.values(), keep=range(trunk.depth))

    assert_close(logits_of(trunk, last), expected.logits, atol=1e-5, rtol=1e-5)
    assert_close(last, expected.hidden_states[-1], atol=1e-5, rtol=1e-5)
    assert sorted(kept) == list(range(trunk.depth))
    for index in range(trunk.depth - 1):
        assert_close(kept[index], expected.hidden_states[index + 1], atol=1e-5, rtol=1e-5)
    assert_close(trunk.finish(kept[trunk.depth - 1]), last)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_classification_head_agrees_with_the_whole_model(case):
    model = tiny(case, auto=AutoModelForSequenceClassification, num_labels=3)
    trunk, batch = trunk_of(model), padded_batch()
    types = torch.randint(0, 2, batch["input_ids"].shape, generator=torch.Generator().manual_seed(5))
    for given in ({}, {"token_type_ids": types} if trunk.token_types > 1 else {}):
        last = last_hidden(trunk, *batch.values(), *given.values())
        logits = trunk.classify(last, batch["attention_mask"])
        assert logits.shape == (3, 3)
        assert_close(logits, model(**batch, **given).logits, atol=1e-5, rtol=1e-5)
    whole = {"input_ids": batch["input_ids"][:1]}
    assert_close(
        trunk.classify(last_hidden(trunk, whole["input_ids"])),
        model(**whole).logits, atol=1e-5, rtol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("auto", [AutoModelForTokenClassification, AutoModelForQuestionAnswering])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_heads_for_tokens_and_spans_agree_with_the_whole_model(case, auto):
    labels = {"num_labels": 3} if auto is AutoModelForTokenClassification else {}
    try:
        model = tiny(case, auto=auto, **labels)
    except ValueError:
        pytest.skip(f"transformers has no such head for {case}")
    trunk, batch = trunk_of(model), padded_batch()
    found = trunk.classify(last_hidden(trunk, *batch.values()), batch["attention_mask"])
    output = model(**batch)
    expected = output.logits if labels else torch.stack([output.start_logits, output.end_logits], -1)
    real = batch["attention_mask"].bool()
    assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["bert", "roberta", "distilbert", "gpt2"])
def test_gradients_of_a_classifier_agree(case):
    model, batch = tiny(case, auto=AutoModelForSequenceClassification, num_labels=2).train(), padded_batch()
    trunk = trunk_of(model)

    def gradients(logits):
        model.zero_grad()
        logits.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    torch.manual_seed(7)
    expected = gradients(model(**batch).logits)
    torch.manual_seed(7)
    found = gradients(trunk.classify(last_hidden(trunk, *batch.values()), batch["attention_mask"]))
    assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_model_without_the_head_or_without_token_types_says_so():
    batch = padded_batch()
    trunk = trunk_of(tiny("bert"))
    with pytest.raises(ModelError, match="BertForMaskedLM has no head for a task"):
        trunk.classify(last_hidden(trunk, *batch.values()))
    with pytest.raises(ModelError, match="distilbert has no token types"):
        trunk_of(tiny("distilbert")).embed(*batch.values(), torch.zeros_like(batch["input_ids"]))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_without_padding_no_mask_is_needed(case):
    model, ids = tiny(case), padded_batch()["input_ids"][:1]
    trunk = trunk_of(model)
    assert_close(last_hidden(trunk, ids), last_hidden(trunk, ids, torch.ones_like(ids)))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_resuming_after_any_block_is_exact(case):
    trunk, batch = trunk_of(tiny(case)), padded_batch()
    flow = trunk.embed(**{f"{name}_BL": value for name, value in batch.items()})
    whole, kept = trunk.blocks(flow, keep=range(trunk.depth))
    for k in range(trunk.depth):
        upto, _ = trunk.blocks(flow, stop=k + 1)
        rest, kept_later = trunk.blocks(flow.resume(upto), start=k + 1, keep=range(k + 1, trunk.depth))
        assert torch.equal(upto, kept[k])
        assert torch.equal(rest, whole)
        assert all(torch.equal(kept_later[i], kept[i]) for i in kept_later)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_mode_and_gradients_agree(case, checkpointing):
    model, batch = tiny(case).train(), padded_batch()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trunk = trunk_of(model)
    model(**batch)  # a first pass, so that one-time warnings draw nothing below

    torch.manual_seed(7)
    expected = model(**batch).logits
    expected.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    torch.manual_seed(7)
    logits = logits_of(trunk, last_hidden(trunk, *batch.values()))
    logits.square().mean().backward()

    assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_close(found, gradients, atol=1e-5, rtol=1e-4)


def test_dropout_is_on_in_training_mode():
    trunk, batch = trunk_of(tiny("bert").train()), padded_batch()
    assert not torch.equal(last_hidden(trunk, *batch.values()), last_hidden(trunk, *batch.values()))


def test_hooks_on_blocks_fire():
    model = tiny("gpt2")
    seen = []
    model.transformer.h[1].register_forward_hook(lambda *_: seen.append(1))
    last_hidden(trunk_of(model), padded_batch()["input_ids"])
    assert seen == [1]


@pytest.mark.parametrize("case", CASES)
def test_facts(case):
    trunk = trunk_of(tiny(case))
    assert (trunk.depth, trunk.width, trunk.heads, trunk.head_dim, trunk.vocab_size) == (3, 16, 4, 4, 40)
    assert trunk.kind == ARCHITECTURES[CASES[case][0]].kind
    offset = PAD + 1 if ARCHITECTURES[CASES[case][0]].offset_positions else 0
    assert trunk.max_length == (512 if case == "distilbert" else 32 - offset)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_max_length_is_the_last_usable_length(case):
    if case == "distilbert":
        pytest.skip("512 positions")
    trunk = trunk_of(tiny(case))
    last_hidden(trunk, torch.full((1, trunk.max_length), 5))
    if trunk.view.positions:
        with pytest.raises((IndexError, RuntimeError)):
            last_hidden(trunk, torch.full((1, trunk.max_length + 1), 5))


def test_the_decoder_is_live_and_the_head_takes_any_leading_shape():
    model = tiny("electra-narrow")
    trunk = trunk_of(model)
    weight, bias = trunk.decoder
    assert weight is model.get_input_embeddings().weight
    assert bias is model.generator_lm_head.bias
    assert trunk.head(torch.randn(16)).shape == (8,)
    assert trunk.head(torch.randn(2, 3, 5, 16)).shape == (2, 3, 5, 8)


def test_keeping_a_block_that_is_not_run_is_refused():
    trunk = trunk_of(tiny("bert"))
    flow = trunk.embed(padded_batch()["input_ids"])
    with pytest.raises(ValueError, match="not among those run"):
        trunk.blocks(flow, start=1, keep=[0])


def test_unknown_architecture_is_named():
    settings = STANDARD | {"vocab_size": 40}
    with pytest.raises(ModelError, match=r"gpt_neox.*known: bert, .*add a view in models/views\.py"):
        trunk_of(AutoModelForCausalLM.from_config(GPTNeoXConfig(**settings)))


def test_a_model_without_a_head_encodes_only():
    trunk = trunk_of(AutoModel.from_config(BertConfig(**STANDARD, vocab_size=40)))
    hidden = last_hidden(trunk, padded_batch()["input_ids"])
    for use in (lambda: trunk.head(hidden), lambda: trunk.decoder):
        with pytest.raises(ModelError, match="BertModel has no language-model head"):
            use()


def test_an_encoder_set_to_decode_is_refused():
    with pytest.raises(ModelError, match="is_decoder"):
        trunk_of(AutoModelForMaskedLM.from_config(BertConfig(**STANDARD, vocab_size=40, is_decoder=True)))


@pytest.mark.parametrize("case", CASES)
def test_only_a_plain_tied_table_takes_over_the_gradient(case):
    model = tiny(case)
    trunk, table = trunk_of(model), model.get_input_embeddings()
    tied = model.get_output_embeddings().weight is table.weight
    with trunk.tying() as shared:
        assert (shared is not None) == tied
        assert ("forward" in vars(table)) == tied
    assert "forward" not in vars(table)
    table.scale_grad_by_freq = True
    with trunk.tying() as shared:
        assert shared is None
