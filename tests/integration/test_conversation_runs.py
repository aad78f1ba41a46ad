"""Decoders that learn completions, alone and from a teacher."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.errors import PotstillError
from potstill.methods.common.data import conversation_parts
from potstill.methods.language.build import texts_of

pytestmark = pytest.mark.integration

QUIET = ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "logger=csv"]


@pytest.fixture
def overrides(chats):
    return [
        "data=conversations", f"data.train_files=[{chats}/train.jsonl]", f"data.eval_files=[{chats}/eval.jsonl]",
        f"data.chat_template={chats}/template.jinja", "data.batch_size=8", "optimizer.lr=2e-3", *QUIET,
    ]  # fmt: skip


def plain_loss(folder, chats):
    """Mean of -log p over the assistant tokens, by transformers, row by row."""
    model = AutoModelForCausalLM.from_pretrained(folder / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    template = (chats / "template.jinja").read_text()
    marked = template.replace(
        "m['content'] + '<|endoftext|>\n' }}",
        "' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|endoftext|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|endoftext|>' }}{% endif %}{{ '\n' }}",
    ).replace("> ' + ' }}", "> ' }}")
    nats, count = 0.0, 0
    for line in (chats / "eval.jsonl").read_text().splitlines():
        made = tokenizer.apply_chat_template(
            json.loads(line)["messages"], chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, learned = torch.tensor(made["input_ids"]), torch.tensor(made["assistant_masks"]).bool()
        with torch.no_grad():
            log_probs = model(ids[None]).logits[0].log_softmax(-1)
        targets = learned[1:]
        nats -= float(log_probs[:-1].gather(1, ids[1:, None])[targets].sum())
        count += int(targets.sum())
    return nats / count


def test_completions_are_learnt_alone_and_from_a_teacher(run, chats, gpt2_teacher, tmp_path, evaluated):
    folder, alone = run("alone", "objective=clm", f"student.model={gpt2_teacher}", "trainer.max_epochs=10")
    assert alone["val/perplexity"] < 8
    assert alone["val/loss_clm"] == pytest.approx(plain_loss(folder, chats), rel=1e-4)
    assert alone["data/rows"] == 96
    assert 0 < alone["data/learned"] < alone["data/tokens"] / 2
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": "say man"}], add_generation_prompt=True, tokenize=False
    )
    assert shown == "<user> say man<|endoftext|>\n<assistant> "

    kd = ["objective=kd", f"teacher.model={folder}/student", "student.layers=[0,3]", "objective.terms.cos.weight=0"]
    student, distilled = run("kd", *kd, "objective.divergence=jsd", "trainer.max_epochs=8", "objective.temperature=1")
    assert distilled["val/loss_ce"] < 0.2
    assert distilled["val/teacher_perplexity"] == pytest.approx(alone["val/perplexity"], rel=1e-4)
    assert distilled["val/loss_clm"] == pytest.approx(plain_loss(student, chats), rel=1e-4)

    _, found = evaluated(
        tmp_path / "table", "benchmark=clm", "data=conversations", f"data.eval_files=[{chats}/eval.jsonl]",
        f"model=[{folder}/student,{student}/student]", "names=[teacher,student]",
    )  # fmt: skip
    assert found["teacher/perplexity"] == pytest.approx(alone["val/perplexity"], rel=1e-4)
    assert found["student/perplexity"] == pytest.approx(math.exp(distilled["val/loss_clm"]), rel=1e-4)


def test_an_evaluation_without_files_of_its_own_has_the_rows_that_were_held_out(chats, compose_config):
    source = ["data=conversations", f"data.train_files=[{chats}/train.jsonl]", "data.eval_share=0.3"]
    train, kept = conversation_parts(compose_config("objective=clm", "student.model=x", *source).data)
    data = compose_config("benchmark=clm", "model=x", *source, name="evaluate").data
    assert texts_of(data, evaluating=True) == ([], kept)
    assert train
    assert not {str(row.prompt) for row in train} & {str(row.prompt) for row in kept}


def test_a_resumed_run_ends_in_the_same_weights(run, gpt2_teacher, tmp_path):
    kd = ["objective=kd", f"teacher.model={gpt2_teacher}", "student.layers=[0,3]", "trainer.accumulate_grad_batches=2"]
    steps = [*kd, "schedule=constant", "schedule.warmup_steps=0"]
    run("whole", *steps, "trainer.max_steps=8")
    run("first", *steps, "trainer.max_steps=3")
    run("first", *steps, "trainer.max_steps=8", f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt")
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "first")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("further", "key"),
    [
        (["objective=mlm", "student=bert_tiny", "data.tokenizer=BERT"], "data=conversations"),
        (["objective=clm", "student.model=GPT2", "data.chat_template=none.jinja"], r"data\.chat_template=none\.jinja"),
        (["objective=clm", "student.model=GPT2", "data.chat_template=null"], r"data\.chat_template=null"),
        (["objective=clm", "student.model=GPT2", "data.train_files=null"], r"data\.train_files=null"),
        (["objective=clm", "student.model=GPT2", "data.train_files=[x.jsonl]"], r"data\.train_files: 'x\.jsonl'"),
        (["objective=clm", "student.model=GPT2", "data.columns.query=x"], r"data\.columns\.query=x"),
        (
            ["objective=clm", "student.model=GPT2", "data.train_files=null", "data.train=[{hub: no/where, folder: x}]"],
            r"data\.train\.0: has hub and folder",
        ),
        (
            ["objective=clm", "student.model=GPT2", "data.train_files=null", "data.train=[{folder: no/where}]"],
            r"data\.train\.0: '.*no/where",
        ),
        (["objective=kd", "teacher.model=GPT2", "teacher/cache=on"], "data=conversations"),
        (["objective=clm", "student=gpt2_tiny"], r"data\.tokenizer=null"),
    ],
)
def test_user_errors(further, key, run, gpt2_teacher, bert_tokenizer):
    filled = [word.replace("GPT2", str(gpt2_teacher)).replace("BERT", str(bert_tokenizer)) for word in further]
    with pytest.raises(PotstillError, match=key):
        run("error", *filled, "trainer.max_steps=1")
