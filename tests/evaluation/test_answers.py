"""Answers equal a brute-force search; metrics equal values of the published scripts computed by hand."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.data.common.tokenizers import describe
from potstill.data.tasks.questions import Answer, Question, QuestionSource
from potstill.data.tasks.sources import DataFile
from potstill.data.tasks.windows import targets_of, windows_of
from potstill.evaluation import answers as module
from potstill.evaluation.answer_metrics import answer_scores, best_threshold, segments, squad_v2
from potstill.evaluation.answers import find_answers
from potstill.evaluation.words import words_of

ANY_FIXTURE = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_questions(data, words):
    questions = []
    for _ in range(data.draw(st.integers(1, 4))):
        own = data.draw(st.lists(st.sampled_from(words), min_size=1, max_size=30))
        first = data.draw(st.integers(0, len(own) - 1))
        last = data.draw(st.integers(first, min(len(own) - 1, first + 9)))
        answer = Answer(" ".join(own[first : last + 1]), len(" ".join([*own[:first], ""])))
        questions.append(Question("q", "who is", " ".join(own), (answer,), True))
    return questions


def windowed(questions, folder, space, stride):
    return windows_of(questions, describe(folder), max_length=space + 5, stride=stride, max_question_length=2)


@given(data=st.data())
@ANY_FIXTURE
def test_gold_logits_give_the_gold_answer(data, bert_tokenizer, words):
    questions = random_questions(data, words)
    longest = max(len(own.references[0].split()) for own in questions)
    space = data.draw(st.integers(longest + 1, 40))
    # Two windows share space - stride tokens, so some window has all of any answer.
    stride = data.draw(st.integers(1, space - longest))
    windows = windowed(questions, bert_tokenizer, space, stride)
    targets = targets_of(windows, questions)
    width = windows.lengths.max() + data.draw(st.integers(0, 3))
    start, end = (np.eye(width)[targets[:, side]] * 5 for side in (0, 1))
    found = find_answers(start, end, windows, questions, max_answer_length=longest)
    assert [own.text() for own in found] == [own.references[0] for own in questions]
    assert all(own.candidates[0].score == 10 for own in found)


@given(data=st.data())
@ANY_FIXTURE
def test_the_best_spans_equal_a_brute_force_search(data, bert_tokenizer, words):
    questions = random_questions(data, words)
    space = data.draw(st.integers(2, 20))
    windows = windowed(questions, bert_tokenizer, space, data.draw(st.integers(1, space - 1)))
    shape = len(windows), int(windows.lengths.max())
    # Few values, so that there are ties.
    draws = np.random.default_rng(data.draw(st.integers(0, 99))).integers(-2, 3, (2, *shape)).astype(np.float32)
    n_best, longest = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    module_chunk, module.CHUNK = module.CHUNK, data.draw(st.sampled_from([1, 100, module.CHUNK]))
    try:
        found = find_answers(*draws, windows, questions, n_best=n_best, max_answer_length=longest)
    finally:
        module.CHUNK = module_chunk
    for number, own in enumerate(found):
        spans, nulls = {}, []
        for window in np.flatnonzero(windows.question == number):
            nulls.append(draws[0, window, 0] + draws[1, window, 0])
            for s in range(windows.pieces[window]):
                for e in range(s, min(s + longest, windows.pieces[window])):
                    score = draws[0, window, windows.begin[window] + s] + draws[1, window, windows.begin[window] + e]
                    key = (s + windows.first[window], e + windows.first[window])
                    spans[key] = min(spans.get(key, (9, 9)), (-score, window))
        ranked = sorted((*rank, *key) for key, rank in spans.items())[:n_best]
        offsets = windows.offsets_of(number)
        expected = [(offsets[s, 0], offsets[e, 1], -score) for score, _, s, e in ranked]
        assert [(c.start, c.end, c.score) for c in own.candidates] == expected
        assert own.null == min(nulls)
        assert own.difference == own.null - own.candidates[0].score


def test_windows_may_be_in_any_order_and_repeated(bert_tokenizer, words):
    questions = [Question("q", "who is", " ".join(words[n : n + 30]), (), False) for n in (0, 30, 60)]
    windows = windowed(questions, bert_tokenizer, 12, 5)
    logits = np.random.default_rng(0).normal(size=(2, len(windows), 17))
    rows = np.random.default_rng(1).permutation(np.r_[np.arange(len(windows)), [0, 3]])
    whole = find_answers(*logits, windows, questions)
    assert find_answers(*logits[:, rows], windows, questions, rows_N=rows) == whole
    part = np.flatnonzero(windows.question == 1)
    assert find_answers(*logits[:, part], windows, questions, rows_N=part) == whole[1:2]
    assert find_answers(*logits[:, :0], windows, questions, rows_N=part[:0]) == []
    with pytest.raises(ValueError, match="of 3 windows"):
        find_answers(*logits, windows, questions, rows_N=np.arange(3))


def test_a_difference_above_the_threshold_is_no_answer(bert_tokenizer):
    questions = [Question("a", "who is", "the man", (), False), Question("b", "who is", " ", (), False)]
    windows = windowed(questions, bert_tokenizer, 10, 4)
    start, end = np.zeros((2, 7)), np.zeros((2, 7))
    start[0, [0, 5]], end[0, [0, 5]] = [2, 1], [1, 1]
    found, blank = find_answers(start, end, windows, questions)
    assert (found.null, found.candidates[0], found.difference) == (3, ("man", 4, 7, 2), 1)
    assert [found.text(), found.text(1), found.text(0.9)] == ["man", "man", ""]
    assert (blank.candidates, blank.text(), blank.text(1e9), blank.difference) == ((), "", "", math.inf)


def test_white_space_is_not_an_answer(gpt2_tokenizer):
    questions = [Question("a", "who", "the   man", (), False)]
    windows = windowed(questions, gpt2_tokenizer, 15, 10)
    (blank,) = np.nonzero(windows.offsets[:, 0] == windows.offsets[:, 1])
    assert len(blank)
    logits = np.zeros((2, 1, 20))
    logits[:, 0, windows.begin[0] + blank] = 5
    (found,) = find_answers(*logits, windows, questions)
    assert all(own.text and own.text == own.text.strip() for own in found.candidates)
    assert {"the", "the   man", "man"} <= {own.text for own in found.candidates}


def means(script, predictions, references):
    return {name: float(scores.mean()) for name, scores in answer_scores(script, predictions, references).items()}


def test_squad():
    # "Denver Broncos" against "Broncos": one of two words, all of one.
    predictions = ["The  Denver, Broncos!", "Broncos", "a", "no"]
    references = [["denver broncos", "x"], ["Denver Broncos"], ["the"], []]
    assert means("squad", predictions[:1], references[:1]) == {"em": 1.0, "f1": 1.0}
    assert means("squad", predictions, references) == pytest.approx({"em": 2 / 4, "f1": (1 + 2 / 3) / 4})
    assert means("squad", ["a b b c"], [["b b b d"]])["f1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_squad_v2():
    predictions = ["denver", "", "x", "", "the"]
    references = [["Denver Broncos", "!"], ["Denver"], [], [], ["an"]]
    found = squad_v2(predictions, references)
    # The last reference and prediction are empty after normalization, so the question has no answer.
    assert found == pytest.approx(
        {
            "em": 2 / 5,
            "f1": (2 / 3 + 2) / 5,
            "has_ans_em": 0,
            "has_ans_f1": 1 / 3,
            "no_ans_em": 2 / 3,
            "no_ans_f1": 2 / 3,
        }
    )
    assert set(squad_v2(["a"], [["b"]])) == {"em", "f1", "has_ans_em", "has_ans_f1"}
    assert squad_v2([], []) == {"em": 0.0, "f1": 0.0}


@given(
    st.lists(st.tuples(st.sampled_from(["man", "the man is", "x", ""]), st.booleans(), st.integers(-3, 3)), min_size=1)
)
@settings(deadline=None)
def test_the_best_threshold_equals_a_brute_force_search(rows):
    best, answerable, differences = zip(*rows, strict=True)
    differences = [float(d) if text else math.inf for text, d in zip(best, differences, strict=True)]
    references = [["man"] if has else [] for has in answerable]
    silent = [""] * len(best)
    found = squad_v2(silent, references, differences=differences, best=best)

    def at(threshold):
        given = [text if d <= threshold else "" for text, d in zip(best, differences, strict=True)]
        return squad_v2(given, references)

    for name in ("em", "f1"):
        tried = [at(threshold)[name] for threshold in range(-4, 4)]
        assert found[f"best_{name}"] == pytest.approx(max(tried))
        assert at(found[f"best_{name}_threshold"])[name] == pytest.approx(max(tried))


def test_best_threshold():
    score, threshold = best_threshold(np.array([1, 0.5, 0, 0]), np.array([1, 1, 0, 0], bool), [-2, 1, 1, 3])
    # Only the first question is answered: one correct answer and two correct empty ones, of 4 questions.
    assert (score, threshold) == (0.75, -2)


def test_segments():
    text = " 《红楼梦》，Co-op: IBM 公司3.5亿 "  # noqa: RUF001
    assert segments(text) == ["红", "楼", "梦", "coop", "ibm", "公", "司", "3.5", "亿"]
    assert segments("「…」") == ["…"]
    assert segments("") == []


def test_cmrc():
    # Text around removed marks is joined, and spaces count for exact matches only.
    assert means("cmrc", ["IBM，公司"], [["ibm公司。"]]) == {"em": 1.0, "f1": 1.0}  # noqa: RUF001
    assert means("cmrc", ["IBM 公司"], [["x", "ibm公司"]]) == {"em": 0.0, "f1": 1.0}
    # The longest common run, 上海, is 2 of 4 and 2 of 3 segments.
    assert means("cmrc", ["上海市区"], [["上海区"]])["f1"] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert means("cmrc", ["", ""], [["3.5"], [""]]) == {"em": 0.5, "f1": 0.0}
    assert means("cmrc", ["a"], [[]]) == {"em": 0.0, "f1": 0.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # The rules of the Penn Treebank, with the full stop at the end of the text only.
        ("good muffins cost $3.88 (roughly 3,36 euros)", "good muffins cost $ 3.88 ( roughly 3,36 euros )"),
        ("they'll save and invest more.", "they 'll save and invest more ."),
        ("hi, my name can't hello,", "hi , my name ca n't hello ,"),
        ("i cannot cannot work under these conditions!", "i can not can not work under these conditions !"),
        ('"we beat some pretty good teams," he said', "`` we beat some pretty good teams , '' he said"),
        ("the dogs' owner, d'ye gonna? 'tis", "the dogs ' owner , d 'ye gon na ? 't is"),
        ("50% of r&d... in #1; x@y", "50 % of r & d ... in # 1 ; x @ y"),
        ("1963–1971", "1963 – 1971"),  # noqa: RUF001
        ("windows 95", "windows 95"),
        # A full stop before a space is a word, except after an abbreviation, a number or an initial.
        ("it ends. then it goes on.", "it ends . then it goes on ."),
        ("mr. smith of the u.s. army, st. louis", "mr. smith of the u.s. army , st. louis"),
        ("no. 5 and j. r. tolkien", "no . 5 and j. r. tolkien"),
        ("in 1963. the end (so. it is.) now", "in 1963. the end ( so . it is . ) now"),
        ("version 2.0.1 of example.com", "version 2.0.1 of example.com"),
        ('he said "stop." then', "he said `` stop . '' then"),
        ("", ""),
    ],
)
def test_words_equal_nltk(text, words):
    assert words_of(text) == words.split()


@pytest.mark.parametrize(
    ("file", "tokenizer", "metric"),
    [
        ("qa/squad1.1/dev-v1.1.json.gz", "bert-base-uncased", "squad"),
        ("chinese/cmrc2018/cmrc2018_dev.json.gz", "bert-base-chinese", "cmrc"),
        ("chinese/drcd/DRCD_dev.json.gz", "bert-base-chinese", "cmrc"),
    ],
)
def test_gold_logits_of_published_sets_score_above_97_percent(data_dir, file, tokenizer, metric):
    questions = QuestionSource(DataFile(data_dir / file), max_examples=600).read().items
    vocabulary = describe(data_dir / "tokenizers" / tokenizer)
    windows = windows_of(questions, vocabulary, max_length=384, stride=128, max_question_length=64)
    targets = targets_of(windows, questions)
    start, end = (np.eye(384, dtype=np.float32)[targets[:, side]] for side in (0, 1))
    found = find_answers(start, end, windows, questions, n_best=1, max_answer_length=50)
    kept = [n for n, own in enumerate(questions) if any(answer.start is not None for answer in own.answers)]
    scores = means(metric, [found[n].text() for n in kept], [questions[n].references for n in kept])
    # All but answers that are part of a token ("gold" of "golden") or longer than allowed.
    assert scores["em"] > 0.97
    assert scores["f1"] > 0.97
