"""Completions of causal language models."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from potstill.models.backbone import backbone_of
from potstill.models.generation import Sampling, Tokens, choose, complete, quantile_token

SHAPE = {"vocab_size": 60, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
WIDE = SHAPE | {"intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0}
CASES = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**WIDE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**WIDE, sliding_window=4)),
    "gemma3_text": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**WIDE, head_dim=8, sliding_window=4)),
}
PROMPTS = [np.array([5, 7, 9]), np.array([3]), np.array([8, 4, 6, 2, 11, 13]), np.array([5, 7, 9])]
TOKENS = Tokens(60, frozenset({1}), 0)


@pytest.fixture(params=CASES)
def model(request):
    torch.manual_seed(0)
    return CASES[request.param]().train()


def seeds(count):
    return [[7, number] for number in range(count)]


def test_greedy_completions_are_those_of_transformers(model):
    found = complete(backbone_of(model), PROMPTS, Sampling(0.0, max_new_tokens=8), TOKENS)
    assert model.training  # as it was
    model.eval()
    for prompt, ids in zip(PROMPTS, found, strict=True):
        whole = model.generate(
            torch.tensor(prompt)[None], max_new_tokens=8, do_sample=False, eos_token_id=1, pad_token_id=0, num_beams=1
        )
        assert ids.tolist() == whole[0, len(prompt) :].tolist()


def test_a_completion_depends_on_the_seed_of_its_row_alone(model):
    backbone, sampling = backbone_of(model), Sampling(9.0, 0.95, max_new_tokens=8)
    whole = complete(backbone, PROMPTS, sampling, TOKENS, seeds=seeds(4))
    parts = complete(backbone, PROMPTS, Sampling(9.0, 0.95, 8, batch_size=1), TOKENS, seeds=seeds(4))
    back = complete(backbone, PROMPTS[::-1], sampling, TOKENS, seeds=seeds(4)[::-1])[::-1]
    assert [ids.tolist() for ids in whole] == [ids.tolist() for ids in parts] == [ids.tolist() for ids in back]
    assert whole[0].tolist() != whole[3].tolist()  # equal prompts, other seeds
    assert all(0 < len(ids) <= 8 and not (ids[:-1] == 1).any() for ids in whole)


def test_what_is_drawn_has_the_probabilities_of_the_model(model):
    """Pearson's statistic of 3,000 first tokens, against its 99.9 % quantile."""
    backbone, prompt = backbone_of(model), PROMPTS[0]
    for temperature in (1.0, 0.6):
        sampling = Sampling(temperature, max_new_tokens=1)
        found = complete(backbone, [prompt] * 3000, sampling, TOKENS, seeds=seeds(3000))
        counts = np.bincount(np.concatenate(found), minlength=60)
        with torch.no_grad():
            logits = model.eval()(torch.tensor(prompt)[None]).logits[0, -1]
        expected = 3000 * (logits / temperature).double().softmax(-1).numpy()
        common = expected >= 5
        groups = [np.append(own[common], own[~common].sum()) for own in (counts, expected)]
        statistic = float(((groups[0] - groups[1]) ** 2 / np.maximum(groups[1], 1e-9)).sum())
        free = int(common.sum())
        assert statistic < free + 3.3 * math.sqrt(2 * free) + 8


def test_nothing_outside_of_the_nucleus_is_drawn():
    generator = torch.Generator().manual_seed(0)
    logits_BV = torch.randn(500, 40, generator=generator) * 3
    drawn_B1 = torch.rand(500, 1, generator=generator, dtype=torch.float64)
    for top_p in (0.1, 0.5, 0.9):
        token_B1 = choose(logits_BV, Sampling(0.8, top_p), drawn_B1)
        probabilities_BV = (logits_BV / 0.8).double().softmax(-1)
        own_B1 = probabilities_BV.gather(-1, token_B1)
        likelier_B = (probabilities_BV * (probabilities_BV > own_B1)).sum(-1)
        assert (likelier_B < top_p).all()


def test_extremes_of_the_distribution():
    logits_BV = torch.tensor([[-math.inf, 2.0, 1.0, -math.inf]])
    for drawn in (0.0, 0.5, 1 - 2**-53):
        assert int(choose(logits_BV, Sampling(), torch.tensor([[drawn]], dtype=torch.float64))) in (1, 2)
    cold = choose(logits_BV, Sampling(0.01), torch.tensor([[0.999]], dtype=torch.float64))
    assert int(cold) == int(choose(logits_BV, Sampling(0.0), None)) == 1


def test_compiled_blocks_are_not_compiled_for_a_growing_cache():
    torch.manual_seed(0)
    model, compiled = CASES["gpt2"](), []
    plain = complete(backbone_of(model), PROMPTS, Sampling(0.0, max_new_tokens=4), TOKENS)

    def compiler(graph, inputs):
        compiled.append(graph)
        return graph.forward

    for block in model.transformer.h:
        block.compile(backend=compiler)
    found = complete(backbone_of(model), PROMPTS, Sampling(0.0, max_new_tokens=4), TOKENS)
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in plain]
    assert not compiled
    model(torch.tensor([[3, 4]]), use_cache=False)
    assert compiled


def test_limits_end_tokens_and_padded_heads():
    torch.manual_seed(0)
    backbone = backbone_of(CASES["gpt2"]())
    long = np.full(30, 5)
    found = complete(backbone, [long, np.full(32, 5), PROMPTS[0]], Sampling(max_new_tokens=8), TOKENS, seeds=seeds(3))
    assert [len(ids) for ids in found[:2]] == [2, 0]
    narrow = Tokens(20, frozenset(), 0)
    drawn = complete(backbone, [PROMPTS[0]] * 50, Sampling(4.0, max_new_tokens=8), narrow, seeds=seeds(50))
    assert max(ids.max() for ids in drawn) < 20
    every = Tokens(60, frozenset(range(60)), 0)
    assert [len(ids) for ids in complete(backbone, PROMPTS, Sampling(0.0), every)] == [1] * 4


def test_quantile_token():
    scores = torch.tensor([[math.log(0.2), math.log(0.5), math.log(0.3)]])

    def at(drawn, top_p):
        return int(quantile_token(scores, torch.tensor([[drawn]], dtype=torch.float64), top_p))

    assert [at(drawn, 1.0) for drawn in (0.0, 0.49, 0.51, 0.79, 0.81, 0.9999999)] == [1, 1, 2, 2, 0, 0]
    # The nucleus of 0.6 is the tokens 1 and 2, of 0.8 together; 5/8 of the draws are token 1.
    assert [at(drawn, 0.6) for drawn in (0.0, 0.62, 0.63, 0.9999999)] == [1, 1, 2, 2]
    assert [at(drawn, 0.01) for drawn in (0.0, 0.9999999)] == [1, 1]


def test_draws_have_the_probabilities_of_the_distribution():
    drawn = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(4000, 4)
    shares = torch.bincount(quantile_token(scores, drawn, 1.0).squeeze(), minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.03, rtol=0)
