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
    OPTConfig,
)

from potstill.errors import ModelError
from potstill.models.backbone import backbone_of
from potstill.models.specs import ARCHITECTURES, attention_for
from potstill.models.views import VIEWS

PAD = 1
STANDARD = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
MODERNBERT = {"local_attention": 4, "cls_token_id": 0, "sep_token_id": 2, "classifier_dropout": 0.1}
DEBERTA = {
    "relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "pooler_hidden_size": 16,
}  # fmt: skip
CASES = {
    "bert": ("bert", STANDARD),
    "roberta": ("roberta", STANDARD),
    "xlm-roberta": ("xlm-roberta", STANDARD),
    "camembert": ("camembert", STANDARD),
    "distilbert": ("distilbert", {"dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 24}),
    "electra": ("electra", STANDARD | {"embedding_size": 16}),
    "electra-narrow": ("electra", STANDARD | {"embedding_size": 8}),
    "modernbert": ("modernbert", STANDARD | MODERNBERT),
    "modernbert-mean": ("modernbert", STANDARD | MODERNBERT | {"classifier_pooling": "mean", "decoder_bias": False}),
    "modernbert-local": (
        "modernbert",
        STANDARD | MODERNBERT | {"layer_types": ["sliding_attention"] * 3, "norm_bias": True, "mlp_bias": True},
    ),
    "deberta-v2": ("deberta-v2", STANDARD | DEBERTA),
    "deberta-v2-types": (
        "deberta-v2",
        STANDARD | DEBERTA | {"position_biased_input": True, "type_vocab_size": 2, "share_att_key": False},
    ),
    "deberta-v2-narrow": ("deberta-v2", STANDARD | {"embedding_size": 8, "position_biased_input": True}),
    "deberta-v2-head": ("deberta-v2", STANDARD | DEBERTA | {"legacy": False}),
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32}),
    "llama": ("llama", STANDARD | {"num_key_value_heads": 2, "attention_dropout": 0.1}),
    "llama-tied": ("llama", STANDARD | {"tie_word_embeddings": True}),
    "mistral": ("mistral", STANDARD | {"num_key_value_heads": 2, "sliding_window": None}),
    "mistral-window": ("mistral", STANDARD | {"num_key_value_heads": 2, "sliding_window": 3}),
    "qwen2": ("qwen2", STANDARD | {"num_key_value_heads": 2}),
    "qwen2-window": (
        "qwen2",
        STANDARD | {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", STANDARD | {"num_key_value_heads": 2, "head_dim": 8, "attention_bias": True}),
    "qwen3-window": (
        "qwen3",
        STANDARD
        | {"num_key_value_heads": 2, "head_dim": 8, "use_sliding_window": True, "sliding_window": 3}
        | {"max_window_layers": 1, "attention_dropout": 0.1},
    ),
    "gpt_neox": (
        "gpt_neox",
        STANDARD | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    ),
    "olmo2": ("olmo2", STANDARD | {"num_key_value_heads": 2}),
    "gemma3_text": (
        "gemma3_text",
        STANDARD | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 3, "sliding_window_pattern": 2},
    ),
    "gpt_neox-serial": ("gpt_neox", STANDARD | {"use_parallel_residual": False, "hidden_dropout": 0.1}),
}


def tiny(case, attention="sdpa", auto=None, **further):
    model_type, settings = CASES[case]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=40, pad_token_id=PAD, bos_token_id=0, eos_token_id=2, **settings | further
    )
    masked = ARCHITECTURES[model_type].kind == "masked"
    auto = auto or (AutoModelForMaskedLM if masked else AutoModelForCausalLM)
    model = auto.from_config(config, attn_implementation=attention_for(model_type, attention)).eval()
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


def encode(backbone, *inputs, keep=()):
    """Embed, run all blocks, finish: the last hidden states, and those after the blocks to keep."""
    hidden_BLD, kept = backbone.blocks(backbone.embed(*inputs), keep=keep)
    return backbone.finish(hidden_BLD), kept


def last_hidden(backbone, *inputs):
    return encode(backbone, *inputs)[0]


def logits_of(backbone, last_hidden_BLD):
    return torch.nn.functional.linear(backbone.head(last_hidden_BLD), *backbone.decoder)


def test_every_known_architecture_has_a_view_and_a_case():
    known = {model_type for model_type, _ in CASES.values()}
    assert set(VIEWS) == set(ARCHITECTURES) == known | {"bigru", "static"}  # tests/models/test_bigru.py, test_static.py


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_agrees_with_the_whole_model(case, attention):
    model, batch = tiny(case, attention), padded_batch()
    backbone = backbone_of(model)
    expected = model(**batch, output_hidden_states=True)

    last, kept = encode(backbone, *batch.values(), keep=range(backbone.depth))

    assert_close(logits_of(backbone, last), expected.logits, atol=1e-5, rtol=1e-5)
    assert_close(last, expected.hidden_states[-1], atol=1e-5, rtol=1e-5)
    assert sorted(kept) == list(range(backbone.depth))
    for index in range(backbone.depth - 1):
        assert_close(kept[index], expected.hidden_states[index + 1], atol=1e-5, rtol=1e-5)
    assert_close(backbone.finish(kept[backbone.depth - 1]), last)


LONG = ["modernbert", "modernbert-local", "qwen2-window", "mistral-window", "qwen3-window", "gemma3_text", "deberta-v2"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", LONG)
@torch.no_grad()
def test_agrees_with_the_whole_model_at_any_length(case, attention):
    model = tiny(case, attention, max_position_embeddings=1024)
    ids = torch.randint(4, 40, (2, 600), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(600) < torch.tensor([[600], [530]])).long()
    backbone = backbone_of(model)
    expected = model(ids, mask).logits
    assert_close(logits_of(backbone, last_hidden(backbone, ids, mask)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("case", "reach"), [("modernbert-local", 6), ("modernbert", 15)])
@torch.no_grad()
def test_a_token_reaches_as_far_as_the_windows(case, reach):
    """Three blocks of a window of two tokens to each side reach six tokens; one block over all tokens reaches all."""
    backbone = backbone_of(tiny(case))
    ids = torch.randint(4, 40, (1, 16), generator=torch.Generator().manual_seed(3))
    other = torch.cat([(ids[:, :1] + 1).clamp_max(39), ids[:, 1:]], 1)
    changed = (last_hidden(backbone, ids) - last_hidden(backbone, other)).abs().amax(-1)[0] > 1e-6
    assert changed.nonzero().max() == reach


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_classification_head_agrees_with_the_whole_model(case):
    model = tiny(case, auto=AutoModelForSequenceClassification, num_labels=3)
    backbone, batch = backbone_of(model), padded_batch()
    types = torch.randint(0, 2, batch["input_ids"].shape, generator=torch.Generator().manual_seed(5))
    for given in ({}, {"token_type_ids": types} if backbone.token_types > 1 else {}):
        last = last_hidden(backbone, *batch.values(), *given.values())
        logits = backbone.classify(last, batch["attention_mask"])
        assert logits.shape == (3, 3)
        assert_close(logits, model(**batch, **given).logits, atol=1e-5, rtol=1e-5)
    whole = {"input_ids": batch["input_ids"][:1]}
    assert_close(
        backbone.classify(last_hidden(backbone, whole["input_ids"])),
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
    backbone, batch = backbone_of(model), padded_batch()
    found = backbone.classify(last_hidden(backbone, *batch.values()), batch["attention_mask"])
    output = model(**batch)
    expected = output.logits if labels else torch.stack([output.start_logits, output.end_logits], -1)
    real = batch["attention_mask"].bool()
    assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["bert", "roberta", "distilbert", "gpt2"])
def test_gradients_of_a_classifier_agree(case):
    model, batch = tiny(case, auto=AutoModelForSequenceClassification, num_labels=2).train(), padded_batch()
    backbone = backbone_of(model)

    def gradients(logits):
        model.zero_grad()
        logits.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    torch.manual_seed(7)
    expected = gradients(model(**batch).logits)
    torch.manual_seed(7)
    found = gradients(backbone.classify(last_hidden(backbone, *batch.values()), batch["attention_mask"]))
    assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_missing_head_and_missing_token_types_are_named():
    batch = padded_batch()
    backbone = backbone_of(tiny("bert"))
    with pytest.raises(ModelError, match=r"^BertForMaskedLM "):
        backbone.classify(last_hidden(backbone, *batch.values()))
    with pytest.raises(ModelError, match=r"^distilbert "):
        backbone_of(tiny("distilbert")).embed(*batch.values(), torch.zeros_like(batch["input_ids"]))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_without_padding_no_mask_is_needed(case):
    model, ids = tiny(case), padded_batch()["input_ids"][:1]
    backbone = backbone_of(model)
    assert_close(last_hidden(backbone, ids), last_hidden(backbone, ids, torch.ones_like(ids)))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_resuming_after_any_block_is_exact(case):
    backbone, batch = backbone_of(tiny(case)), padded_batch()
    flow = backbone.embed(**{f"{name}_BL": value for name, value in batch.items()})
    whole, kept = backbone.blocks(flow, keep=range(backbone.depth))
    for k in range(backbone.depth):
        upto, _ = backbone.blocks(flow, stop=k + 1)
        rest, kept_later = backbone.blocks(flow.resume(upto), start=k + 1, keep=range(k + 1, backbone.depth))
        assert torch.equal(upto, kept[k])
        assert torch.equal(rest, whole)
        assert all(torch.equal(kept_later[i], kept[i]) for i in kept_later)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_mode_and_gradients_agree(case, checkpointing):
    model, batch = tiny(case).train(), padded_batch()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    backbone = backbone_of(model)
    model(**batch)  # a first pass, so that one-time warnings draw nothing below

    torch.manual_seed(7)
    expected = model(**batch).logits
    expected.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    torch.manual_seed(7)
    logits = logits_of(backbone, last_hidden(backbone, *batch.values()))
    logits.square().mean().backward()

    assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_close(found, gradients, atol=1e-5, rtol=1e-4)


def test_dropout_is_on_in_training_mode():
    backbone, batch = backbone_of(tiny("bert").train()), padded_batch()
    assert not torch.equal(last_hidden(backbone, *batch.values()), last_hidden(backbone, *batch.values()))


def test_hooks_on_blocks_fire():
    model = tiny("gpt2")
    seen = []
    model.transformer.h[1].register_forward_hook(lambda *_: seen.append(1))
    last_hidden(backbone_of(model), padded_batch()["input_ids"])
    assert seen == [1]


@pytest.mark.parametrize("case", CASES)
def test_sizes(case):
    backbone = backbone_of(tiny(case))
    assert (backbone.depth, backbone.width, backbone.heads, backbone.head_dim, backbone.vocab_size) == (3, 16, 4, 4, 40)
    assert backbone.kind == ARCHITECTURES[CASES[case][0]].kind
    offset = PAD + 1 if ARCHITECTURES[CASES[case][0]].offset_positions else 0
    assert backbone.max_length == (512 if case == "distilbert" else 32 - offset)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_max_length_is_the_last_usable_length(case):
    if case == "distilbert":
        pytest.skip("512 positions")
    backbone = backbone_of(tiny(case))
    last_hidden(backbone, torch.full((1, backbone.max_length), 5))
    if backbone.view.positions:
        with pytest.raises((IndexError, RuntimeError)):
            last_hidden(backbone, torch.full((1, backbone.max_length + 1), 5))


def test_the_decoder_is_live_and_the_head_takes_any_leading_shape():
    model = tiny("electra-narrow")
    backbone = backbone_of(model)
    weight, bias = backbone.decoder
    assert weight is model.get_input_embeddings().weight
    assert bias is model.generator_lm_head.bias
    assert backbone.head(torch.randn(16)).shape == (8,)
    assert backbone.head(torch.randn(2, 3, 5, 16)).shape == (2, 3, 5, 8)


def test_a_block_that_is_not_run_cannot_be_kept():
    backbone = backbone_of(tiny("bert"))
    flow = backbone.embed(padded_batch()["input_ids"])
    with pytest.raises(ValueError, match=r"\[0\] .*1 to 2"):
        backbone.blocks(flow, start=1, keep=[0])


def test_unknown_architecture_is_named():
    settings = STANDARD | {"vocab_size": 40}
    with pytest.raises(ModelError, match=r"'opt'.*bert, .*models/views\.py"):
        backbone_of(AutoModelForCausalLM.from_config(OPTConfig(**settings, word_embed_proj_dim=16)))


def test_a_model_without_a_head_encodes_only():
    backbone = backbone_of(AutoModel.from_config(BertConfig(**STANDARD, vocab_size=40)))
    hidden = last_hidden(backbone, padded_batch()["input_ids"])
    for use in (lambda: backbone.head(hidden), lambda: backbone.decoder):
        with pytest.raises(ModelError, match=r"^BertModel "):
            use()


def test_an_encoder_set_to_decode_is_rejected():
    with pytest.raises(ModelError, match="is_decoder"):
        backbone_of(AutoModelForMaskedLM.from_config(BertConfig(**STANDARD, vocab_size=40, is_decoder=True)))


@pytest.mark.parametrize("case", CASES)
def test_only_plain_tied_embeddings_receive_the_gradient(case):
    model = tiny(case)
    backbone, table = backbone_of(model), model.get_input_embeddings()
    # Gemma's table scales what it looks up.
    tied = backbone.decoder[0] is table.weight and type(table) is torch.nn.Embedding
    with backbone.tying() as shared:
        assert (shared is not None) == tied
        assert ("forward" in vars(table)) == tied
    assert "forward" not in vars(table)
    table.scale_grad_by_freq = True
    with backbone.tying() as shared:
        assert shared is None
