"""Token ids of conversations, and the tokens that are learned."""

import numpy as np
import pytest

from potstill.data.common.tokenizers import describe
from potstill.data.conversations.encoding import encode
from potstill.data.conversations.reading import Conversation
from potstill.errors import ConfigError, DataError, FormatError
from potstill.models.load import load_tokenizer

# ChatML with the marks by which transformers finds assistant tokens.
MARKED = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<end>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<end>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def chat(*turns):
    messages = tuple({"role": role, "content": content} for role, content in turns)
    learned = frozenset(n for n, (role, _) in enumerate(turns) if role == "assistant")
    return Conversation(messages, learned, None, "data.train_files: 'a.jsonl' line 1")


CHATS = [
    chat(("system", "be kind"), ("user", "where is he?"), ("assistant", "he was there .")),
    chat(("user", "and she"), ("assistant", "she too"), ("user", "why"), ("assistant", "so it is , he said")),
]


@pytest.fixture
def made(gpt2_tokenizer, tmp_path):
    def make(rows, template=PLAIN, max_length=200, tokenizer=gpt2_tokenizer):
        options = {"template": template, "max_length": max_length, "cache": tmp_path}
        return encode(rows, load_tokenizer(tokenizer), describe(tokenizer), **options)

    return make


def sequences(corpus):
    rows = np.arange(len(corpus))
    ids, lengths = corpus.gather(rows)
    return list(zip(*(np.split(own, np.cumsum(lengths)[:-1]) for own in (ids, corpus.learned(rows))), strict=True))


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_assistant_tokens_are_those_of_transformers(template, made, gpt2_tokenizer):
    tokenizer = load_tokenizer(gpt2_tokenizer)
    for row, (ids, learned) in zip(CHATS, sequences(made(CHATS, template)), strict=True):
        whole = tokenizer.apply_chat_template(
            list(row.messages), chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
        )
        assert ids.tolist() == whole["input_ids"]
        assert learned.astype(int).tolist() == whole["assistant_masks"]
        assert 0 < learned.sum() < len(learned)


def test_a_template_may_write_the_last_turn_differently(made, gpt2_tokenizer):
    """As those of reasoning models, which drop the thoughts of earlier turns."""
    thinking = PLAIN.replace(
        "{{ m['content'] + '<end>' }}", "{{ ('<think>' if loop.last else '') + m['content'] + '<end>' }}"
    )
    ((ids, learned),) = sequences(made(CHATS[1:], thinking))
    tokenizer = load_tokenizer(gpt2_tokenizer)
    starts = np.flatnonzero(learned & ~np.roll(learned, 1))
    ends = np.flatnonzero(learned & ~np.roll(learned, -1)) + 1
    texts = [tokenizer.decode(ids[start:end]) for start, end in zip(starts, ends, strict=True)]
    assert texts == ["she too<end>", "<think>so it is , he said<end>"]


def test_sequences_in_any_order(made):
    corpus = made(CHATS)
    (first, one), (second, other) = sequences(corpus)
    ids, lengths = corpus.gather([1, 0, 1])
    assert ids.tolist() == [*second, *first, *second]
    assert lengths.tolist() == [len(second), len(first), len(second)]
    assert corpus.learned([1, 0, 1]).tolist() == [*other, *one, *other]
    counts = corpus.describe()
    assert (counts["rows"], counts["sequences"], counts["learned"]) == (2, 2, one.sum() + other.sum())
    assert corpus.token_counts.sum() == counts["tokens"] == len(first) + len(second)


def test_plain_texts_are_joined_and_ended(made, gpt2_tokenizer):
    tokenizer = load_tokenizer(gpt2_tokenizer)
    row = Conversation((), frozenset(), ("the man ", "was there"), "")
    ((ids, learned),) = sequences(made([row], template=None))
    assert ids.tolist() == [*tokenizer("the man was there")["input_ids"], tokenizer.eos_token_id]
    text = tokenizer.decode(ids[learned][:-1])
    assert text.strip() == "was there"
    assert learned[-1]
    assert not learned[0]


def test_long_rows_are_cut_and_those_without_completion_left_out(made):
    long = chat(("user", "where is he? " * 20), ("assistant", "there"))
    corpus = made([*CHATS, long], max_length=len(sequences(made(CHATS))[1][0]) - 3)
    counts = corpus.describe()
    assert (counts["rows"], counts["sequences"], counts["cut"], counts["dropped"]) == (3, 2, 2, 1)
    with pytest.raises(DataError, match=r"^data\.max_length=4: .* 1 rows"):
        made([long], max_length=4)


def test_the_last_turn_and_its_prompt(made):
    corpus = made(CHATS)
    whole = sequences(corpus)
    for number, (ids, learned) in enumerate(whole):
        prompt = corpus.prompt(number)
        assert prompt.tolist() == ids[: len(prompt)].tolist()
        turn = np.flatnonzero(learned & ~np.roll(learned, 1))[-1]
        assert len(prompt) == turn == corpus.prompts[number]
    assert corpus.rows.tolist() == [0, 1]
    cut = made(CHATS, max_length=int(corpus.prompts[1]))  # of the second row the last turn is cut off
    assert cut.prompts.tolist() == [corpus.prompts[0], -1]
    last = [ids[np.flatnonzero(learned)[-1]] for ids, learned in whole]
    assert corpus.ends.tolist() == sorted({*last})
    other = corpus.with_completions({1: np.array([3, 4, 5])})
    (_, (ids, learned)) = sequences(other)
    assert ids.tolist() == [*corpus.prompt(1), 3, 4, 5]
    assert np.flatnonzero(learned).tolist() == [len(ids) - 3, len(ids) - 2, len(ids) - 1]
    assert sequences(other)[0][0].tolist() == whole[0][0].tolist()
    assert other.describe()["learned"] == whole[0][1].sum() + 3


def test_templates_that_cannot_be_used(made):
    with pytest.raises(ConfigError, match=r"^data\.chat_template=null: "):
        made(CHATS, template=None)
    with pytest.raises(FormatError, match=r"line 1: the chat template rejects it \(roles must alternate\)"):
        made(CHATS, template="{{ raise_exception('roles must alternate') }}")
    counting = "{{ messages | length }}" + PLAIN
    with pytest.raises(FormatError, match=r"line 1: .*data\.chat_template"):
        made(CHATS, template=counting)


def test_features_are_remembered_by_content_and_template(made, tmp_path):
    folder = tmp_path / "features"
    made(CHATS)
    first = set(folder.iterdir())
    made(CHATS)
    assert set(folder.iterdir()) == first
    made(CHATS, template=PLAIN.replace("<end>", "<stop>"))
    made(CHATS[:1])
    made(CHATS, max_length=30)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 4
