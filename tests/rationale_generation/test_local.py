import pytest
import torch

from potstill.errors import ConfigError, ModelError
from potstill.rationale_generation.answers import Request
from potstill.rationale_generation.local import LocalModel
from potstill.rationale_generation.settings import LocalSettings, Sampling

PROMPTS = [
    "the of and to",
    "a in that is was he for it with as his on be at by",
    "this had",
    "not are but from or have an they which one you",
    "were",
    "her all she there would their we him been has when",
    "who will more no if out so said what up",
]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, gpt2_tokenizer):
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    fast = AutoTokenizer.from_pretrained(gpt2_tokenizer)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(fast), n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    # Sampling options in the folder of a model are not used.
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=5.0, max_length=3)
    folder = tmp_path_factory.mktemp("local-gpt2")
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory, gpt2_tokenizer):
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    fast = AutoTokenizer.from_pretrained(gpt2_tokenizer)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(fast), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=3, num_heads=4,
            pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, initializer_factor=3.0,
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("local-t5")
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def answers(folder, sampling, prompts=PROMPTS, batch_size=3, stop=(), seeds=None):
    found = {}
    seeds = seeds or [100 + row for row in range(len(prompts))]
    requests = [Request(str(row), prompt, seed) for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))]
    model = LocalModel(LocalSettings(str(folder), batch_size=batch_size), sampling, stop)
    tally = model.answer(requests, lambda request, answer: found.__setitem__(request.key, answer))
    return [found[request.key] for request in requests], tally


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_does_not_depend_on_its_batch(request, architecture, temperature):
    folder = request.getfixturevalue(architecture)
    sampling = Sampling(max_tokens=8, temperature=temperature, top_p=0.95)
    alone, _ = answers(folder, sampling, batch_size=1)
    assert len({answer.text for answer in alone}) > 1
    for batch_size in (2, 7):
        assert answers(folder, sampling, batch_size=batch_size)[0] == alone
    backwards, _ = answers(folder, sampling, PROMPTS[::-1], seeds=[100 + row for row in range(len(PROMPTS))][::-1])
    assert backwards[::-1] == alone


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_greedy_answers_equal_a_plain_loop(request, architecture):
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    folder = request.getfixturevalue(architecture)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    auto = AutoModelForCausalLM if architecture == "gpt2" else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(folder).eval()
    end = 0 if architecture == "gpt2" else 1
    found, _ = answers(folder, Sampling(max_tokens=8, logprobs=True))
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids, tokens, sums = tokenizer(prompt)["input_ids"], [], []
        for _ in range(8):
            with torch.no_grad():
                if architecture == "gpt2":
                    logits = model(torch.tensor([ids + tokens])).logits[0, -1]
                else:
                    logits = model(torch.tensor([ids]), decoder_input_ids=torch.tensor([[0, *tokens]])).logits[0, -1]
            tokens.append(int(logits.argmax()))
            sums.append(float(logits.log_softmax(-1).max()))
            if tokens[-1] == end:
                break
        assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer.output_tokens == len(tokens)
        assert answer.input_tokens == len(ids)
        assert answer.finish == ("stop" if tokens[-1] == end else "length")
        # The logits of these random models are large (30), so padding alone rounds by 1e-3; in float64 by 1e-12.
        assert [value for _, value in answer.logprobs] == pytest.approx(sums, abs=5e-3)


def test_an_answer_depends_on_the_seed_of_its_row(gpt2):
    sampling = Sampling(max_tokens=8, temperature=1.5)
    same = ["the of and to"] * 3
    found, _ = answers(gpt2, sampling, same, seeds=[1, 2, 1])
    assert found[0] == found[2]
    assert found[0].text != found[1].text


def test_stop_strings_end_an_answer(gpt2):
    whole, _ = answers(gpt2, Sampling(max_tokens=12, temperature=1.0))
    mark = whole[0].text[3:5]
    found, _ = answers(gpt2, Sampling(max_tokens=12, temperature=1.0, logprobs=True), stop=(mark,))
    for before, after in zip(whole, found, strict=True):
        assert after.text == before.text.split(mark)[0]
        if mark in before.text:
            assert after.finish == "stop"
            assert after.output_tokens <= before.output_tokens
        assert len(after.logprobs) == after.output_tokens
    assert found[0].output_tokens < 12


def test_counts_and_order(gpt2):
    seen = []
    requests = [Request(str(row), prompt, 0) for row, prompt in enumerate(PROMPTS)]
    model = LocalModel(LocalSettings(str(gpt2), batch_size=2), Sampling(max_tokens=4))
    tally = model.answer(requests, lambda request, answer: seen.append(answer))
    lengths = [answer.input_tokens for answer in seen]
    assert lengths == sorted(lengths, reverse=True)
    assert (tally.asked, tally.answered) == (7, 7)
    assert tally.input_tokens == sum(lengths)
    assert tally.output_tokens == sum(answer.output_tokens for answer in seen)


def test_chats_use_the_chat_template_of_the_tokenizer(gpt2, tmp_path):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    messages = [{"role": "user", "content": "the of and to"}]
    with pytest.raises(ModelError, match=r"generation.form=completion"):
        answers(gpt2, Sampling(max_tokens=2), [messages])
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.chat_template = (
        "{% for m in messages %}in {{ m.content }}{% endfor %}{% if add_generation_prompt %} by{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    GPT2LMHeadModel.from_pretrained(gpt2).save_pretrained(tmp_path)
    sampling = Sampling(max_tokens=6)
    assert answers(tmp_path, sampling, [messages]) == answers(tmp_path, sampling, ["in the of and to by"])


def test_prompts_longer_than_the_positions_are_rejected(gpt2):
    with pytest.raises(ModelError, match=r"^generation.model=.* 64 .* 1\d\d;"):
        answers(gpt2, Sampling(max_tokens=100))


def test_unusable_models_are_rejected(tmp_path, bert_tokenizer, gpt2):
    from transformers import BertConfig, BertModel

    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"^generation.model=.*empty: "):
        LocalModel(LocalSettings(str(tmp_path / "empty")), Sampling())
    BertModel(
        BertConfig(vocab_size=200, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(bert_tokenizer).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match=r"^generation.model=.*bert: .*cls\."):
        LocalModel(LocalSettings(str(tmp_path / "bert")), Sampling())
    with pytest.raises(ConfigError, match=r"generation.device=abacus: "):
        LocalModel(LocalSettings(str(gpt2), device="abacus"), Sampling())
    with pytest.raises(ConfigError, match=r"generation.dtype=int8"):
        LocalSettings("m", dtype="int8")
    with pytest.raises(ConfigError, match=r"generation.batch_size=0"):
        LocalSettings("m", batch_size=0)


def thinking(gpt2, folder, template=None):
    """The model with a tokenizer whose marks of thoughts are special tokens."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "<extra>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    return LocalModel(LocalSettings(str(folder)), Sampling(max_tokens=6, logprobs=True), ("he",)), tokenizer


def test_special_tokens_that_mark_thoughts_stay_in_the_text(gpt2, tmp_path):
    model, tokenizer = thinking(gpt2, tmp_path)
    marks = tokenizer.convert_tokens_to_ids(["[THINK]", "[/THINK]", "<extra>"])
    ids = [marks[0], *tokenizer("the he")["input_ids"], marks[1], marks[2], *tokenizer(" of and")["input_ids"], 0]
    answer = model._read(ids, 3, None, [0.0] * len(ids), [[] for _ in ids], "")
    assert answer.text == "[THINK]the he[/THINK] of and"  # a stop string within a thought is ignored
    assert answer.finish == "stop"
    assert len(answer.logprobs) == len(ids)


def test_a_stop_string_in_a_thought_does_not_end_the_answer(gpt2, tmp_path):
    from potstill.rationale_generation.local import _StopStrings

    model, tokenizer = thinking(gpt2, tmp_path)
    ends = _StopStrings(model._decode, ("he",), start=0, opened=["", "[THINK]", ""])
    ids = torch.tensor([tokenizer("this had he")["input_ids"]] * 3)
    ids[2, 0] = tokenizer.convert_tokens_to_ids("[THINK]")
    assert ends(ids, None).tolist() == [True, False, False]


def test_a_thought_opened_by_the_chat_template_is_part_of_the_answer(gpt2, tmp_path):
    template = "{% for m in messages %}{{ m.content }}{% endfor %} by [THINK]\n"
    model, _ = thinking(gpt2, tmp_path, template)
    found = []
    request = Request("a", [{"role": "user", "content": "the of and to"}], 0)
    model.answer([request], lambda _, answer: found.append(answer))
    assert found[0].text.startswith("[THINK]")
