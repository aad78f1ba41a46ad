"""Prompts, targets and choices of decoder-only students, and labels and rationales as one target."""

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from potstill.data.common.tokenizers import describe
from potstill.data.rationales.forms import Form, chat_frame
from potstill.errors import ConfigError, DataError, TokenizerError

FRAME = ("<system>be brief <user>", "<end> <assistant>")


@pytest.fixture(scope="module")
def gpt2(gpt2_tokenizer):
    return describe(gpt2_tokenizer)


def form_of(vocabulary, **settings):
    return Form(vocabulary, 0, prompts=True, **settings)


def texts(tokens, form):
    ids, start, found = tokens.ids.tolist(), 0, []
    for length in tokens.lengths.tolist():
        found.append(form.backend.decode(ids[start : start + length], skip_special_tokens=False))
        start += length
    return found


@pytest.mark.parametrize("chat", [None, FRAME])
def test_a_prompt_is_what_transformers_tokenizes(gpt2, chat):
    form = form_of(gpt2, chat=chat)
    made = form.inputs(["the sea", None, "is the sea wet"], "predict: ", 200)
    before, after = chat or ("", "\n")
    wanted = [f"{before}predict: the sea{after}", "", f"{before}predict: is the sea wet{after}"]
    assert texts(made, form) == wanted
    whole = AutoTokenizer.from_pretrained(gpt2.path)
    assert made.ids.tolist() == [token for text in (wanted[0], wanted[2]) for token in whole(text)["input_ids"]]
    assert made.lengths[1] == 0
    assert not made.truncated.any()


@pytest.mark.parametrize("chat", [None, FRAME])
def test_a_long_prompt_loses_the_end_of_its_input(gpt2, chat):
    form = form_of(gpt2, chat=chat)
    text = "the sea is wet and so is this"
    (whole,) = form.inputs([text], "predict: ", 200).lengths
    made = form.inputs([text, "it"], "predict: ", int(whole) - 3)
    assert made.truncated.tolist() == [True, False]
    assert made.lengths[0] == whole - 3
    before, after = chat or ("", "\n")
    cut = texts(made, form)[0]
    assert cut.startswith(f"{before}predict: the sea")
    assert cut.endswith(after)
    assert text.startswith(cut.removeprefix(f"{before}predict: ").removesuffix(after))
    with pytest.raises(DataError, match=r"^data\.max_input_length: "):
        form.inputs([text], "predict: ", 3)


def test_targets_end_with_the_end_token(gpt2):
    form = form_of(gpt2)
    made = form.targets(["wet", None, "very wet"], 200)
    assert texts(made, form) == ["wet<|endoftext|>", "", "very wet<|endoftext|>"]
    cut = form.targets(["very wet and cold"], 4)
    assert (cut.lengths.tolist(), cut.truncated.tolist(), cut.ids[-1]) == ([4], [True], 0)
    assert form.choice("wet") == made.ids[: made.lengths[0]].tolist()


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_label_and_its_rationale_are_one_target(gpt2, t5_tokenizer, kind):
    if kind == "gpt2":
        form, end = form_of(gpt2, separator="because:"), "<|endoftext|>"
    else:
        vocabulary = describe(t5_tokenizer)
        form, end = Form(vocabulary, vocabulary.end_id, separator="explain:"), "</s>"
    separator = form.separator
    labels, rationales = ["ann", "bob has", "eve"], ["so ann has", "pens are left", None]
    made = form.joined(labels, rationales, 200)
    parts = texts(made, form)
    assert [text.removesuffix(end).strip() for text in parts[:2]] == [
        f"ann {separator} so ann has", f"bob has {separator} pens are left",
    ]  # fmt: skip
    assert [text.endswith(end) for text in parts] == [True, True, False]
    starts = [0, *made.lengths.cumsum().tolist()]
    for row, (label, rationale) in enumerate(zip(labels, rationales, strict=True)):
        ids = made.ids[starts[row] : starts[row + 1]].tolist()
        choice = form.choice(label)
        assert ids[: len(choice)] == choice  # scored up to the separator, which ends the label
        found = [form.backend.decode(own).strip() for own in form.split(ids)]
        assert found == [label, rationale or ""]
    assert form.split(form.backend.encode("ann", add_special_tokens=False).ids)[1] == []
    cut = form.joined(labels[:1], rationales[:1], len(form.choice("ann")) + 1)
    assert cut.truncated.tolist() == [True]


def test_a_separator_that_cannot_be_written(t5_tokenizer):
    vocabulary = describe(t5_tokenizer)
    with pytest.raises(TokenizerError, match=r"^data\.explain_prefix='warum'"):
        _ = Form(vocabulary, vocabulary.end_id, separator="warum").separator_ids


def test_a_blank_input_of_a_tokenizer_of_words_has_a_token(t5_tokenizer):
    vocabulary = describe(t5_tokenizer)
    backend = Tokenizer.from_file(f"{t5_tokenizer}/tokenizer.json")
    assert backend.encode("", add_special_tokens=False).ids == []
    form = Form(vocabulary, vocabulary.end_id, prompts=True)
    assert form.inputs(["", "ann"], "", 20).lengths.tolist() == [1, 2]
    assert form.inputs([""], "", 20).ids.tolist() == [vocabulary.end_id]


def test_a_chat_template_before_and_after_the_message(gpt2_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(gpt2_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% if enable_thinking %}<think>{% endif %}{% endif %}"
    )
    assert chat_frame(tokenizer, "data.chat=true") == ("<user>", "<end><assistant>")
    for template in (
        "no message",
        "{{ messages[0].content }} {{ messages[0].content }}",
        "{{ raise_exception('no') }}",
    ):
        tokenizer.chat_template = template
        with pytest.raises(ConfigError, match=r"^data\.chat=true: the chat template of"):
            chat_frame(tokenizer, "data.chat=true")
