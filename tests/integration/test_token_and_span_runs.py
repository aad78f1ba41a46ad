"""Named entities and answers from end to end, in this process: learning, evaluating, comparing, distilling, errors."""

import json
import random

import pytest

from potstill.errors import ConfigError, DataError, ModelError
from potstill.methods.task.build import read_task
from potstill.runs.checks import validate_train

pytestmark = pytest.mark.integration

QUIET = ["logger=csv", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
SMALL = ["data.max_length=48", "data.batch_size=8", "optimizer.lr=3e-3", "data.eval_batch_size=16"]
SPANS = ["benchmark.stride=8", "benchmark.max_question_length=12", "benchmark.max_answer_length=6"]


@pytest.fixture(scope="module")
def files(tmp_path_factory, words):
    """An entity is two words, each of a quarter of the list; an answer is the one entity of its context."""
    folder, words = tmp_path_factory.mktemp("tagged"), sorted(set(words))
    half = len(words) // 2
    for part, count in (("train", 120), ("dev", 40), ("more", 10)):
        draw, lines, paragraphs = random.Random(part), [], []
        for number in range(count):
            plain = draw.choices(words[half:], k=draw.randint(4, 14))
            at = draw.randrange(len(plain))
            entity = [draw.choice(words[: half // 2]), draw.choice(words[half // 2 : half])]
            tokens = [*plain[:at], *entity, *plain[at:]]
            tags = [*["O"] * at, "B-X", "I-X", *["O"] * (len(plain) - at)]
            lines += [*(f"{token} {tag}" for token, tag in zip(tokens, tags, strict=True)), ""]
            context = " ".join(tokens)
            start = len(" ".join(plain[:at])) + (at > 0)
            answer = {"text": " ".join(entity), "answer_start": start}
            question = {"id": f"{part}{number}", "question": draw.choice(words), "answers": [answer]}
            paragraphs.append({"context": context, "qas": [question]})
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
        (folder / f"{part}.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, bert_tokenizer, make_bert):
    return make_bert(tmp_path_factory.mktemp("encoder"), bert_tokenizer, layers=2, initializer_range=0.05)


def given(files, kind):
    suffix, name = {"tokens": ("txt", "token_classification"), "spans": ("json", "question_answering")}[kind]
    parts = [f"benchmark.train_file={files}/train.{suffix}", f"benchmark.eval_file={files}/dev.{suffix}"]
    return [f"benchmark={name}", *parts, *(SPANS if kind == "spans" else [])]


@pytest.fixture
def run(files, encoder, trained, tmp_path):
    def start(name, kind, *overrides):
        own = [] if any(o.startswith("student") for o in overrides) else [f"student.model={encoder}"]
        objective = [] if any(o.startswith("objective=") for o in overrides) else ["objective=finetune"]
        return trained(tmp_path / name, *objective, *given(files, kind), *SMALL, *QUIET, *own, *overrides)

    return start


@pytest.fixture
def evaluator(files, evaluated, tmp_path):
    def start(name, kind, *overrides):
        parts = [part for part in given(files, kind) if "train_file" not in part]
        return evaluated(tmp_path / name, *parts, "data.max_length=48", *overrides)

    return start


def test_entities_are_learnt_evaluated_and_distilled_with_interventions(run, evaluator, files):
    from transformers import AutoModelForTokenClassification

    folder, summary = run("ner", "tokens", "trainer.max_epochs=12", f"benchmark.more_train_files=[{files}/more.txt]")
    assert summary["val/f1"] > 0.9
    assert summary["data/train_examples"] == 130
    assert {"val/precision", "val/recall", "val/f1_X", "val/accuracy", "val/loss"} <= summary.keys()
    model = AutoModelForTokenClassification.from_pretrained(folder / "student")
    assert model.config.id2label == {0: "O", 1: "B-X", 2: "I-X"}

    report, evaluated = evaluator("evaluated", "tokens", f"model={folder}/student")
    assert evaluated["test/f1"] == pytest.approx(summary["val/f1"])
    lines = (report / "predictions.txt").read_text().splitlines()
    assert sum(bool(line) for line in lines) == sum(map(bool, (files / "dev.txt").read_text().splitlines()))
    right = [line.split()[1] == line.split()[2] for line in lines if line]
    assert sum(right) / len(right) == pytest.approx(evaluated["test/accuracy"])

    teacher = [f"teacher.model={folder}/student", "student.layers=[0]", "trainer.max_epochs=2"]
    student, own = run("diito", "tokens", "objective=diito", "objective.terms.ce.weight=1", *teacher)
    assert {"train/loss_causal_ce", "train/loss_label", "val/interchange_agreement"} <= own.keys()
    assert own["val/f1"] > 0.3
    _, both = evaluator("both", "tokens", f"model=[{folder}/student,{student}/student]", "names=[teacher,student]")
    low, value, high = (both[f"student/test/f1_difference{end}"] for end in ("_low", "", "_high"))
    assert low <= value <= high
    assert value == pytest.approx(own["val/f1"] - summary["val/f1"], abs=1e-6)


def test_answers_are_learnt_evaluated_and_distilled(run, evaluator, files):
    from transformers import AutoModelForQuestionAnswering

    folder, summary = run("qa", "spans", "trainer.max_epochs=14")
    assert summary["val/f1"] > 0.8
    assert summary["val/em"] > 0.6
    AutoModelForQuestionAnswering.from_pretrained(folder / "student")

    report, evaluated = evaluator("evaluated", "spans", f"model={folder}/student")
    assert evaluated["test/f1"] == pytest.approx(summary["val/f1"])
    answers = json.loads((report / "predictions.json").read_text())
    gold = {
        entry["id"]: entry["answers"][0]["text"]
        for paragraph in json.loads((files / "dev.json").read_text())["data"][0]["paragraphs"]
        for entry in paragraph["qas"]
    }
    assert answers.keys() == gold.keys()
    assert sum(answers[name] == gold[name] for name in gold) / len(gold) == pytest.approx(evaluated["test/em"])
    best = json.loads((report / "predictions_nbest.json").read_text())
    assert all(entry["answers"][0]["text"] == answers[name] for name, entry in best.items())

    teacher = [f"teacher.model={folder}/student", "student.layers=[1]", "trainer.max_steps=5"]
    _, own = run("diito", "spans", "objective=diito", "objective.terms.ce.weight=1", *teacher)
    assert {"train/loss_causal_ce", "train/loss_ce", "val/em", "val/interchange_agreement"} <= own.keys()


def test_questions_without_answers_are_scored_by_the_threshold(run, evaluator, files, tmp_path):
    folder, _ = run("v2", "spans", "trainer.max_steps=20", "benchmark.answer_metric=squad_v2")
    content = json.loads((files / "dev.json").read_text())
    for paragraph in content["data"][0]["paragraphs"][:20]:
        paragraph["qas"][0] |= {"is_impossible": True, "answers": []}
    (tmp_path / "v2.json").write_text(json.dumps(content))
    common = [f"model={folder}/student", f"benchmark.eval_file={tmp_path}/v2.json", "benchmark.answer_metric=squad_v2"]
    _, silent = evaluator("silent", "spans", *common, "benchmark.null_threshold=-1e9")
    assert silent["test/no_ans_f1"] == 1
    assert silent["test/has_ans_f1"] == 0
    report, always = evaluator("always", "spans", *common)
    odds = json.loads((report / "predictions_null_odds.json").read_text())
    best = json.loads((report / "predictions_nbest.json").read_text())
    assert odds.keys() == best.keys()
    for name, own in best.items():
        assert odds[name] == pytest.approx(own["null"] - own["answers"][0]["score"])
    assert always["test/no_ans_f1"] < 0.2  # an answer of articles alone is none
    assert always["test/best_f1"] >= max(always["test/f1"], silent["test/f1"])


def test_all_tokens_of_a_word_are_trained_on(run, evaluator):
    """`benchmark.label_all_tokens`; what is evaluated stays the same."""
    folder, summary = run("all", "tokens", "benchmark.label_all_tokens=true", "trainer.max_epochs=12")
    assert summary["val/f1"] > 0.9
    _, found = evaluator("evaluated", "tokens", f"model={folder}/student")
    assert found["test/f1"] == pytest.approx(summary["val/f1"])


@pytest.mark.parametrize(("column", "labels"), [(1, {"NNP", "CD", "VBD"}), (2, {"B-NP", "I-NP", "B-VP"})])
def test_parts_of_speech_and_chunks_of_conll2003(column, labels, data_dir, run, encoder, compose_config):
    files = data_dir / "ner" / "conll2003"
    config = compose_config(
        "objective=finetune", "benchmark=conll2003", f"benchmark.train_file={files}/train.txt.gz",
        f"benchmark.eval_file={files}/dev.txt", f"benchmark.tag_column={column}", "benchmark.labels=null",
        "data.max_examples=300", f"student.model={encoder}", "data.max_length=48",
    )  # fmt: skip
    validate_train(config)
    task = read_task(config).task
    assert labels <= set(task.labels)
    assert task.monitor == ("accuracy" if column == 1 else "f1")


def test_tagged_words_are_compared_at_every_token(run):
    """`objective.tokens=all`."""
    teacher, _ = run("teacher", "tokens", "trainer.max_steps=20")
    kd = ["objective=task_kd", f"teacher.model={teacher}/student", "student.layers=[0]", "trainer.max_steps=4"]
    losses = {
        tokens: run(tokens, "tokens", *kd, f"objective.tokens={tokens}", "objective.terms.label.weight=1").summary
        for tokens in ("first", "all")
    }
    assert losses["all"]["train/loss_ce"] != pytest.approx(losses["first"]["train/loss_ce"], rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("tokens", ["benchmark.tag_column=3"], "benchmark.tag_column"),
        ("tokens", ["benchmark.labels=[O,X]"], "benchmark.labels"),
        ("tokens", ["benchmark.labels=[O,X,B-X]"], "'X'"),
        ("tokens", ["benchmark.labels=[O,B-Y]"], "benchmark.labels"),
        ("tokens", ["benchmark.labels=[O,B-X]"], "benchmark.labels"),
        ("tokens", ["benchmark.label_column=x"], "benchmark.label_column=x"),
        ("spans", ["benchmark.tag_column=1"], "benchmark.tag_column=1"),
        ("spans", ["data.skip='^#'"], "data.skip=^#"),
        ("tokens", ["benchmark.scheme=IOB"], "benchmark.scheme=IOB: "),
        ("spans", ["benchmark.stride=0"], "benchmark.stride=0"),
        ("spans", ["benchmark.stride=40"], "benchmark.stride=40: "),
        ("spans", ["benchmark.answer_metric=bleu"], "benchmark.answer_metric=bleu"),
        ("spans", ["benchmark.labels=[a,b]"], "benchmark.labels=[a,b]"),
    ],
)
def test_invalid_options_are_rejected(kind, overrides, message, run):
    with pytest.raises((ConfigError, DataError), match=r"benchmark|data\.skip") as caught:
        run("error", kind, *overrides, "trainer.max_steps=1")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_with_another_head_is_rejected(run, evaluator, encoder):
    with pytest.raises((ConfigError, ModelError), match=r"^model="):
        evaluator("none", "tokens", f"model={encoder}")


def unnamed(student, labels):
    """Have a model name its labels by number alone, as transformers does where nobody names them."""
    path = student / "config.json"
    config = json.loads(path.read_text())
    config["id2label"] = {str(number): f"LABEL_{number}" for number in range(labels)}
    config["label2id"] = {f"LABEL_{number}": number for number in range(labels)}
    path.write_text(json.dumps(config))


def test_plain_tags_are_scored_by_accuracy_even_of_a_single_sentence(run, evaluator, tmp_path, words):
    lines = [f"# text {n}\n{words[n % 9]}\tNOUN\n{words[9 + n % 9]} a\t$.\n\n" for n in range(24)]
    (tmp_path / "train.tsv").write_text("".join(lines))
    (tmp_path / "dev.tsv").write_text(lines[0])
    parts = [f"benchmark.train_file={tmp_path}/train.tsv", f"benchmark.eval_file={tmp_path}/dev.tsv", "data.skip='^#'"]
    folder, summary = run("pos", "tokens", "trainer.max_epochs=8", *parts)
    assert summary["val/accuracy"] == 1
    assert "val/f1" not in summary
    model = f"model={folder}/student"
    where, evaluated = evaluator("evaluated", "tokens", model, *parts[1:])
    assert evaluated["test/accuracy"] == 1
    assert "test/f1" not in evaluated
    rows = [line.split("\t") for line in (where / "predictions.txt").read_text().splitlines()]
    assert rows == [[words[0], "NOUN", "NOUN"], [f"{words[9]} a", "$.", "$."]]
    with pytest.raises(DataError, match=r"benchmark\.labels"):
        evaluator("entities", "tokens", model)
    teacher = ["objective=task_kd", f"teacher.model={folder}/student", "student.layers=[0]", "trainer.max_steps=1"]
    _, distilled = run("distilled", "tokens", *teacher, *parts)
    assert distilled["val/accuracy"] in (0, 0.5, 1)  # of two words
    unnamed(folder / "student", 2)
    with pytest.raises(ConfigError, match=r"benchmark\.labels"):
        evaluator("unnamed", "tokens", model, *parts[1:])
    with pytest.raises(ModelError, match=r"benchmark\.labels"):
        run("unnamed_teacher", "tokens", *teacher, *parts)
    _, named = evaluator("named", "tokens", model, *parts[1:], "benchmark.labels=[$.,NOUN]")
    assert named["test/accuracy"] == 1
    _, anew = run("anew", "tokens", f"student.model={folder}/student", "trainer.max_steps=1", *parts)
    assert "val/accuracy" in anew


def test_questions_without_any_answers_are_only_predicted(run, evaluator, files, tmp_path, caplog):
    folder, _ = run("qa", "spans", "trainer.max_steps=2")
    contents = {}
    for name in ("no_key", "null", "empty", "mixed", "one"):
        content = json.loads((files / "dev.json").read_text())
        paragraphs = content["data"][0]["paragraphs"]
        for number, paragraph in enumerate(paragraphs):
            question = paragraph["qas"][0]
            if name == "no_key":
                del question["answers"]
            elif name == "null":
                question["answers"] = None
            elif name == "empty" or (name == "mixed" and number):
                question["answers"] = []
        if name == "one":
            del paragraphs[1:]
        contents[name] = tmp_path / f"{name}.json"
        contents[name].write_text(json.dumps(content))
    model = f"model={folder}/student"
    for name in ("no_key", "null", "empty"):
        where, evaluated = evaluator(name, "spans", model, f"benchmark.eval_file={contents[name]}")
        assert not [key for key in evaluated if key.startswith("test/")]
        assert len(json.loads((where / "predictions.json").read_text())) == 40
        with pytest.raises((ConfigError, DataError), match=r"benchmark\.eval_file"):
            run(f"train_{name}", "spans", f"benchmark.eval_file={contents[name]}")
    v2 = f"benchmark.eval_file={contents['empty']}", "benchmark.answer_metric=squad_v2"
    assert "test/em" in evaluator("v2", "spans", model, *v2).summary
    assert "squad_v2" not in caplog.text
    assert "test/f1" in evaluator("mixed", "spans", model, f"benchmark.eval_file={contents['mixed']}").summary
    assert "benchmark.answer_metric=squad_v2" in caplog.text
    assert "test/f1" in evaluator("one", "spans", model, f"benchmark.eval_file={contents['one']}").summary
