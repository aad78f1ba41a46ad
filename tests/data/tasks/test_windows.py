"""Windows equal those of transformers, cover every context token, and contain every answer."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.data.common.tokenizers import describe
from potstill.data.tasks.questions import Answer, Question, QuestionSource
from potstill.data.tasks.sources import DataFile
from potstill.data.tasks.windows import NULL, targets_of, windows_of
from potstill.errors import ConfigError

ANY_FIXTURE = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ask(question, context, *answers):
    found = tuple(Answer(text, context.index(text)) for text in answers)
    return Question("q", question, context, found, bool(found))


def ids_of(windows, window):
    ends = np.cumsum(windows.lengths)
    part = slice(ends[window] - windows.lengths[window], ends[window])
    return windows.ids[part].tolist(), windows.types[part].tolist()


@pytest.fixture
def roberta_tokenizer(gpt2_tokenizer, tmp_path):
    """A byte-level tokenizer that frames pairs with four special tokens of one type."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(gpt2_tokenizer / "tokenizer.json"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    start, end = (tokenizer.token_to_id(token) for token in ("<s>", "</s>"))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", end), ("<s>", start), True, False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def vocabulary_of(kind, request):
    return describe(request.getfixturevalue(kind))


@pytest.mark.parametrize("kind", ["bert_tokenizer", "gpt2_tokenizer", "roberta_tokenizer"])
def test_windows_are_those_of_transformers(kind, request, words):
    from transformers import PreTrainedTokenizerFast

    folder = request.getfixturevalue(kind)
    context = " ".join(words[:70])
    question = ask("who was the man", context, "the")
    windows = windows_of([question], describe(folder), max_length=24, stride=5, max_question_length=10)
    own = len(ids_of(windows, 0)[0]) - int(windows.pieces[0])
    whole = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    expected = whole(
        question.question,
        context,
        truncation="only_second",
        max_length=24,
        stride=24 - own - 5,  # what two windows share
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    assert len(windows) == len(expected["input_ids"]) > 3
    for window in range(len(windows)):
        assert ids_of(windows, window) == (expected["input_ids"][window], expected["token_type_ids"][window])
        piece = slice(windows.begin[window], windows.begin[window] + windows.pieces[window])
        texts = [context[a:b].strip() for a, b in expected["offset_mapping"][window][piece]]
        offsets = windows.offsets_of(0)[windows.first[window] :][: windows.pieces[window]]
        assert [context[a:b] for a, b in offsets] == texts


@pytest.mark.parametrize("kind", ["bert_tokenizer", "gpt2_tokenizer"])
@given(data=st.data())
@ANY_FIXTURE
def test_windows_cover_every_context_and_targets_are_the_answers(kind, data, request, words):
    vocabulary = vocabulary_of(kind, request)
    questions = []
    for _ in range(data.draw(st.integers(1, 3))):
        own = data.draw(st.lists(st.sampled_from(words), min_size=1, max_size=40))
        first = data.draw(st.integers(0, len(own) - 1))
        last = data.draw(st.integers(first, len(own) - 1))
        start = len(" ".join([*own[:first], ""]))
        answer = Answer(" ".join(own[first : last + 1]), start)
        asked = " ".join(data.draw(st.lists(st.sampled_from(words), max_size=12)))
        questions.append(Question("q", asked, " ".join(own), (answer,), True))
    limit = data.draw(st.integers(0, 6))
    room = data.draw(st.integers(2, 30))
    frame = 3 if kind == "bert_tokenizer" else 0
    options = {"max_length": limit + room + frame, "max_question_length": limit}
    windows = windows_of(questions, vocabulary, stride=data.draw(st.integers(1, room - 1)), **options)
    assert windows.lengths.max() <= options["max_length"]
    assert windows.lengths.sum() == len(windows.ids) == len(windows.types)
    targets = targets_of(windows, questions)
    for number, question in enumerate(questions):
        (own,) = np.nonzero(windows.question == number)
        offsets = windows.offsets_of(number)
        held = [set(range(windows.first[w], windows.first[w] + windows.pieces[w])) for w in own]
        assert set().union(*held) == set(range(len(offsets)))
        assert all(len(a - b) and len(b - a) for a, b in pairwise(held))
        (answer,) = question.answers
        touching = {t for t, (a, b) in enumerate(offsets) if a < answer.start + len(answer.text) and b > answer.start}
        for window, tokens in zip(own, held, strict=True):
            start, end = targets[window] - windows.begin[window] + windows.first[window]
            if touching <= tokens:
                assert question.context[offsets[start, 0] : offsets[end, 1]] == answer.text
            else:
                assert targets[window].tolist() == [NULL, NULL]


def test_unanswerable_and_misplaced_answers_point_at_the_first_token(bert_tokenizer, words):
    context = " ".join(words[:30])
    questions = [
        Question("a", "who", context, (), False),
        Question("b", "who", context, (Answer("the", None),), True),
        Question("c", "who", context, (Answer("man", None), Answer("of", 4)), True),
    ]
    windows = windows_of(questions, describe(bert_tokenizer), max_length=40, stride=8, max_question_length=8)
    assert targets_of(windows, questions).tolist() == [[0, 0], [0, 0], [4, 4]]


def test_chinese_is_cut_into_characters(data_dir):
    question = ask("她出生在哪里？", "她1963年出生在 London 的 黄浦区。", "1963年")  # noqa: RUF001
    vocabulary = describe(data_dir / "tokenizers" / "bert-base-chinese")
    windows = windows_of([question], vocabulary, max_length=64, stride=8, max_question_length=32)
    ((start, end),) = targets_of(windows, [question]) - windows.begin[0]
    offsets = windows.offsets_of(0)
    assert question.context[offsets[start, 0] : offsets[end, 1]] == "1963年"
    assert all(b - a == 1 for a, b in offsets if "\u4e00" <= question.context[a] <= "\u9fa5")


def test_a_blank_context_has_a_window(bert_tokenizer):
    questions = [ask("who", " "), ask("who", "the man", "man")]
    windows = windows_of(questions, describe(bert_tokenizer), max_length=20, stride=4, max_question_length=8)
    assert (windows.question.tolist(), windows.pieces.tolist()) == ([0, 1], [0, 2])
    assert targets_of(windows, questions).tolist() == [[0, 0], [4, 4]]


def test_long_questions_are_cut_and_counted(bert_tokenizer):
    questions = [ask("who was the man", "the man", "man"), ask("who", "the man", "man")]
    seen = []
    options = {"max_length": 20, "stride": 4, "max_question_length": 2, "progress": seen.append}
    windows = windows_of(questions, describe(bert_tokenizer), **options)
    assert windows.cut.tolist() == [True, False]
    assert windows.lengths.tolist() == [7, 6]
    assert seen == [2]


@pytest.mark.parametrize("stride", [0, 11, 30])
def test_an_invalid_stride_is_rejected(bert_tokenizer, stride):
    options = {"max_length": 20, "stride": stride, "max_question_length": 6}
    with pytest.raises(ConfigError, match=rf"^benchmark.stride={stride}: must be 1 to 10,"):
        windows_of([ask("who", "the man")], describe(bert_tokenizer), **options)
    windows_of([ask("who", "the man")], describe(bert_tokenizer), **options | {"stride": 10})


@pytest.mark.parametrize(
    ("file", "tokenizer", "found"),
    [
        ("qa/squad1.1/train_part_nodev.json.gz", "bert-base-uncased", 0.97),
        ("qa/squad1.1/train_part_nodev.json.gz", "roberta-gpt2-bpe", 0.97),
        ("qa/squad1.1/train_part_nodev.json.gz", "t5", 0.93),
        ("chinese/cmrc2018/cmrc2018_trial.json", "bert-base-chinese", 0.97),
        ("chinese/drcd/DRCD_dev.json.gz", "bert-base-chinese", 0.99),
    ],
)
def test_targets_of_real_questions_are_their_answers(data_dir, file, tokenizer, found):
    questions = QuestionSource(DataFile(data_dir / file), max_examples=1000, training=True).read().items
    vocabulary = describe(data_dir / "tokenizers" / tokenizer)
    windows = windows_of(questions, vocabulary, max_length=384, stride=128, max_question_length=64)
    places = targets_of(windows, questions)
    answered = np.zeros(len(questions), np.bool_)
    for (start, end), number, begin, first in zip(places, windows.question, windows.begin, windows.first, strict=True):
        if start == NULL:
            continue
        offsets, question = windows.offsets_of(number), questions[number]
        text = question.context[offsets[start - begin + first, 0] : offsets[end - begin + first, 1]]
        # A token may be more than an answer: half a number, a bracket that belongs to a word.
        assert question.answers[0].text.strip() in text
        answered[number] |= text == question.answers[0].text.strip()
    assert answered.mean() > found
