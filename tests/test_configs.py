"""Every file of conf/: it says which command uses it, it composes, and every recipe runs."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from potstill.config.benchmarks import SimilarityConfig, TaskBenchmarkConfig
from potstill.data.tasks.splits import task_of
from potstill.models.specs import ModelSpec
from potstill.objectives.matching import read_matches
from potstill.runs.checks import validate_train

BERT = ModelSpec("bert", "masked", depth=12, width=768, heads=12, vocab_size=30522, max_length=512)
CONF = Path(__file__).parents[1] / "conf"
# conf/local/ is git-ignored and its user's own.
FILES = sorted(path for path in CONF.rglob("*.yaml") if path.parent.name != "local")
OPTIONS = [path for path in FILES if path.parent != CONF]
OF_TASK = CONF / "experiment" / "of_task"  # not chosen by name
EXPERIMENTS = [path.stem for path in OPTIONS if path.parent == CONF / "experiment"]
# Recipes in stages are run whole by integration/test_recipes.py, and their stages here.
STAGED = ["textbrewer"]


# Options that need a plugin of Hydra's.
EXTRAS = {f"hydra/launcher/{name}": "hydra_plugins.hydra_submitit_launcher" for name in ("slurm", "local")}


def name_of(path):
    return path.relative_to(CONF).with_suffix("").as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_config_begins_with_the_command_that_uses_it(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    command = re.match(r"# python (train|evaluate)\.py (.+)", lines[0])
    assert command, lines[0]
    if path.parent != CONF and path.parent.name not in ("optimizer", "teacher"):
        recipe, _, task = path.stem.partition("_") if path.parent == OF_TASK else (path.stem, "", "")
        assert recipe in command[2]
        assert task in command[2]


@pytest.mark.parametrize("path", [path for path in OPTIONS if path.parent != OF_TASK], ids=name_of)
def test_an_option_composes(path, compose_config):
    group, option = path.parent.relative_to(CONF).as_posix(), path.stem
    if EXTRAS.get(name_of(path)):
        pytest.importorskip(EXTRAS[name_of(path)])
    script = "evaluate" if group == "benchmark" else "train"
    config = compose_config(f"{group}={option}", name=script)
    assert config.seed == 42
    if group in ("objective", "benchmark", "logger", "data"):
        assert config[group].name == option
    if group in ("data", "strategy"):
        compose_config(f"{group}={option}", name="evaluate")
    if group == "benchmark" and isinstance(config.benchmark, TaskBenchmarkConfig):
        similarity = isinstance(config.benchmark, SimilarityConfig)  # whose metrics are not those of a task
        task = config.benchmark if similarity else task_of(config.benchmark)
        assert task.monitor in task.metrics
        assert compose_config("objective=finetune", f"{group}={option}").benchmark == config.benchmark


@pytest.mark.integration
@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in STAGED])
def test_an_experiment_runs(
    experiment, compose_config, bert_teacher, gpt2_teacher, roberta_teacher, text_file, eval_file, shared_cache,
    tmp_path, arithmetic_files, t5_tokenizer,
):  # fmt: skip
    from potstill.runs import train as train_run

    recipe = compose_config(f"experiment={experiment}")
    local = {"gpt2": gpt2_teacher, "roberta-base": roberta_teacher}.get(recipe.teacher.model, bert_teacher)
    small = [
        f"data.cache={shared_cache}", "data.batch_size=4", "trainer.accumulate_grad_batches=2", "trainer.max_steps=2",
        "trainer.val_check_interval=null", "logger=csv", "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    if recipe.data.name == "arithmetic":  # it has rows and a student of its own
        small += [f"data.generated.{part}=16" for part in ("train", "valid", "test")]
    elif recipe.objective.name == "step_by_step":
        small += _prefixed(tmp_path, arithmetic_files, t5_tokenizer)
    else:
        small.append("data.max_length=32")
    if recipe.data.name in ("docstrings", "wikitext", "wikitext_bookcorpus", "openwebtext"):
        files = [f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]"]
        small += ["data=text_files", *files, "data.num_proc=1"]
    if recipe.objective.name in ("kd", "diito") and recipe.benchmark is None:
        small.append(f"teacher.model={local}")
    if recipe.data.name == "conversations":
        small += _completed(tmp_path, recipe.data.columns, gpt2_teacher)
    if recipe.student.layers is not None:
        small.append("student.layers=[0,1]")
    if recipe.benchmark is not None:
        (tmp_path / "rows.tsv").write_text("sentence\tlabel\n" + "the man\t1\none other\t0\n" * 12)
        small += [f"benchmark.{part}_file={tmp_path}/rows.tsv" for part in ("train", "eval")]
        if recipe.objective.name == "finetune":
            small.append(f"student.model={local}")
        else:  # it needs a teacher that knows the task
            fine = [f"benchmark={recipe.benchmark.name}", "objective=finetune", f"student.model={local}"]
            train_run.train(compose_config(*fine, *small), tmp_path / "teacher")
            small.append(f"teacher.model={tmp_path}/teacher/student")
    if experiment == "diito_task_pkd":
        small.append("objective.matches=[{teacher: 2, student: 1, loss: pkd, run: counterfactual}]")
    config = compose_config(f"experiment={experiment}", *small)
    validate_train(config)
    train_run.train(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["train/steps"] == 2
    _check_figures(recipe, summary)
    settings = json.loads((tmp_path / "student" / "config.json").read_text())
    if experiment == "distilbert":
        assert settings["model_type"] == "distilbert"


def _check_figures(recipe, summary):
    if recipe.benchmark is not None or recipe.objective.name == "step_by_step":
        monitor = "accuracy" if recipe.benchmark is None else recipe.benchmark.monitor
        assert 0 <= summary[f"val/{monitor}"] <= 1
    elif recipe.objective.name == "gkd":
        assert 0 <= summary["val/exact_match"] <= 1
        assert summary["train/completion_tokens"] <= 8
    else:
        (hard,) = (summary[f"val/loss_{name}"] for name in ("mlm", "clm") if f"val/loss_{name}" in summary)
        assert summary["val/perplexity"] == pytest.approx(math.exp(hard), rel=1e-4)


def _completed(folder, columns, model):
    """Overrides that give decoders short conversations."""
    row = {columns.prompt: "the man", columns.completion: "so\n#### 2"}
    (folder / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 12)
    template = "{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}"
    return [
        *(f"data.{part}_files=[{folder}/rows.jsonl]" for part in ("train", "eval")), f'data.chat_template="{template}"',
        "objective.sampling.max_new_tokens=8", f"teacher.model={model}", f"student.model={model}",
    ]  # fmt: skip


def _prefixed(folder, files, tokenizer):
    """Overrides that give a student of step-by-step distillation rows and weights."""
    from potstill.models.save import save_student
    from potstill.models.seq2seq import seq2seq_from_config

    shape = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    student = seq2seq_from_config(shape, vocab_size=64, pad_token_id=0, eos_token_id=1)
    save_student(student, tokenizer, folder / "fresh", "")
    parts = {"train": "train", "eval": "valid", "test": "test"}
    return [
        *(f"data.{key}_files=[{files}/{part}.jsonl]" for key, part in parts.items()),
        f"student.model={folder}/fresh", "data.generation_max_length=8",
    ]  # fmt: skip


def test_step_by_step_says_what_was_published(compose_config):
    for name in ("step_by_step_cqa", "step_by_step_svamp", "step_by_step_esnli", "step_by_step_anli1"):
        config = compose_config(f"experiment={name}")
        assert config.data.set == name.removeprefix("step_by_step_")
        assert (config.objective.mode, config.objective.alpha) == ("task_prefix", 0.5)
        assert config.data.batch_size * config.trainer.accumulate_grad_batches == 64
        assert (config.trainer.max_steps, config.trainer.val_check_interval) == (10000, 250)
        assert config.optimizer["lr"] == 5e-5
        assert (config.data.max_input_length, config.data.max_target_length) == (1024, 256)
    for name, labels in (("standard_finetune", "gt"), ("standard_distill", "llm")):
        config = compose_config(f"experiment={name}")
        assert (config.objective.mode, config.data.labels) == ("standard", labels)


def test_the_published_recipes_say_what_was_published(compose_config):
    for name in ("distilbert", "distilroberta", "distilgpt2"):
        config = compose_config(f"experiment={name}")
        hard = "clm" if name == "distilgpt2" else "mlm"
        weights = {term: settings.weight for term, settings in config.objective.terms.items()}
        assert (weights["ce"], weights[hard], weights["cos"]) == (5.0, 2.0, 1.0)
        assert config.objective.temperature == 2.0
        assert config.student.layers == [0, 2, 4, 7, 9, 11]
        assert config.optimizer["lr"] == 5e-4
        assert config.optimizer["betas"] == [0.9, 0.98]
        assert config.optimizer["eps"] == 1e-6
        assert config.schedule.warmup_share == 0.05
        assert config.trainer.gradient_clip_val == 5.0
        assert (config.data.batch_size, config.trainer.accumulate_grad_batches) == (5, 50)


def test_the_recipe_of_modernbert_keeps_the_order_of_global_and_local_layers(compose_config):
    from transformers import ModernBertConfig

    config = compose_config("experiment=distilmodernbert")
    assert config.teacher.model == "answerdotai/ModernBERT-base"
    assert (config.data.mlm_share, config.data.max_length) == (0.3, 1024)
    assert not config.student.freeze_positions
    kinds = ModernBertConfig().layer_types
    chosen = [kinds[layer] for layer in config.student.layers]
    assert chosen == ModernBertConfig(num_hidden_layers=10).layer_types
    assert (config.student.layers[0], config.student.layers[-1]) == (0, len(kinds) - 1)


def test_the_published_interventions_say_what_was_published(compose_config):
    """The README of frankaging/Causal-Distill; layers, pairs and read site from its scripts.

    `scripts/extract_distilbert.py` takes the first `--num_layers` of 0, 2, 4, 7, 9, 11, without `--vocab_transform`;
    `LmSeqsDataset` shuffles the corpus once; `counterfactual_utils.py` reads `hidden_states[k]`, the input of block k.
    """
    for name in ("diito", "diito_naacl", "diito_3layer"):
        config = compose_config(f"experiment={name}")
        weights = {term: settings.weight for term, settings in config.objective.terms.items() if settings.weight}
        names = ["ce", "mlm", "cos", "causal_ce", *(["causal_cos"] if name == "diito_naacl" else [])]
        assert weights == dict.fromkeys(names, 0.2 if name == "diito_naacl" else 0.25)
        exchange = config.objective.interchange
        assert (exchange.proportion, exchange.positions, exchange.max_tokens) == (0.3, "consecutive", None)
        assert (exchange.pairing, exchange.read_site) == ("shuffled", "block_input")
        assert (exchange.crossway, exchange.data_augment) == (False, False)
        assert exchange.mapping == ("multilayer" if name == "diito_naacl" else "single_middle")
        assert (config.data.batch_size, config.trainer.accumulate_grad_batches) == (40, 6)
        assert [(source.hub, source.config) for source in config.data.train] == [
            ("Salesforce/wikitext", "wikitext-103-v1")
        ]
        assert config.objective.temperature == 2.0
        assert (config.trainer.max_epochs, config.seed) == (3, 42)
        assert config.student.layers == ([0, 2, 4] if name == "diito_3layer" else [0, 2, 4, 7, 9, 11])
        assert config.student.vocab_transform is False
        assert (config.data.mlm_share, config.data.mlm_smoothing, config.optimizer["lr"]) == (0.15, 0.7, 5e-4)


@pytest.mark.parametrize(
    ("student", "vocabulary", "millions"),
    [
        ("t6", 28_996, 65), ("t3", 28_996, 44), ("t3_small", 28_996, 17), ("t4_tiny", 28_996, 14),
        ("t12_nano", 28_996, 17), ("bigru_base", 28_996, 31), ("t3", 21_128, 38), ("t3_small", 21_128, 14),
        ("t4_tiny", 21_128, 11), ("electra_small", 21_128, 12),
    ],
)  # fmt: skip
def test_students_are_as_large_as_published(student, vocabulary, millions, compose_config):
    """TextBrewer's README: with the embeddings of bert-base-cased or chinese-roberta-wwm-ext, without a head."""
    import torch
    from transformers import AutoConfig, AutoModel

    import potstill.models.bigru  # noqa: F401  (registers it with transformers)

    config = compose_config("objective=task_kd", f"student={student}", "benchmark=sst2", "teacher.model=x").student
    sizes = dict(config.config) or {"model_type": "bert", "num_hidden_layers": len(config.layers)}
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(sizes.pop("model_type"), vocab_size=vocabulary, **sizes))
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(millions * 1e6, abs=1e6)


def test_the_tables_of_textbrewer(compose_config):
    """README.md and the scripts in examples/ of TextBrewer 0.2.1. s_opt1=30 leaves 1/30 of the rate."""
    english, chinese = "bert-base-cased", "hfl/chinese-roberta-wwm-ext"
    published = {
        "mnli": (english, 1e-4, 0.0333, 24, 128, 40),
        "squad": (english, 1e-4, 0.0333, 24, 384, 40),
        "conll2003": (english, 1e-4, 0.0, 32, 128, 40),
        "xnli_zh": (chinese, 1e-4, 0.0333, 24, 128, 40),
        "lcqmc": (chinese, 1e-4, 0.0333, 24, 128, 40),
        "cmrc2018": (chinese, 1.5e-4, 1.0, 24, 512, 50),
        "drcd": (chinese, 7e-5, 1.0, 24, 512, 50),
        "msra_ner": ("hfl/chinese-electra-180g-base-discriminator", 5e-5, 0.0, 24, 160, 30),
    }
    students = ("t6", "t3_small", "t4_tiny", "t12_nano", "bigru_base", "electra_small")
    for benchmark, student in [*((name, "t3") for name in published), *(("mnli", name) for name in students)]:
        config = compose_config("experiment=textbrewer", f"benchmark={benchmark}", f"student={student}")
        length = config.data.max_length or config.benchmark.max_length
        assert published[benchmark] == (
            config.teacher.model, config.optimizer["lr"], config.schedule.end_share, config.data.batch_size, length,
            config.trainer.max_epochs,
        )  # fmt: skip
        assert (config.objective.temperature, config.objective.soft_target) == (8, "cross_entropy")
        assert (config.objective.terms.ce.weight, config.objective.terms.label.weight) == (1, 0)
        assert (config.optimizer["weight_decay"], config.schedule.warmup_share) == (0.01, 0.1)
        assert config.trainer.gradient_clip_val == 1.0


def test_the_published_interventions_of_a_task_say_what_was_published(compose_config):
    """The README of frankaging/Causal-Distill-XXS; `get_predefine_argv("glue", "SST-2", "kd.cls")` of its parser.

    `causal_distiller.py` adds the counterfactual KL with weight 1; `layer_mapping` is `full`.
    """
    for name, t, lr, epochs in (("diito_task", 20.0, 2e-5, 5), ("diito_task_pkd", 10.0, 1e-5, 4)):
        config = compose_config(f"experiment={name}")
        objective, exchange = config.objective, config.objective.interchange
        assert (objective.temperature, objective.hard_weight) == (t, 0.3)
        weights = {term: own.weight for term, own in objective.terms.items() if own.weight}
        assert weights == {"ce": 0.7, "causal_ce": 1.0}
        assert objective.terms.label.weight is None  # hard_weight
        assert (exchange.mapping, exchange.proportion, exchange.positions) == ("multilayer", 0.3, "free")
        assert (exchange.max_tokens, exchange.read_site) == (None, "block_output")
        assert config.student.layers == [0, 1, 2, 3, 4, 5]
        assert (config.benchmark.name, config.data.max_length, config.data.batch_size) == ("sst2", 128, 32)
        assert (config.trainer.max_epochs, config.trainer.accumulate_grad_batches) == (epochs, 1)
        assert (config.optimizer["lr"], config.optimizer["weight_decay"], config.schedule.warmup_share) == (
            lr,
            0.01,
            0.1,
        )
    matches = read_matches(objective.matches, [BERT], replace(BERT, depth=6))
    assert [match.teacher for match in matches] == [(2,), (4,), (6,), (8,), (10,)] * 2
    assert [match.student for match in matches] == [(1,), (2,), (3,), (4,), (5,)] * 2
    assert [match.run for match in matches] == ["base"] * 5 + ["counterfactual"] * 5
    assert [match.weight for match in matches] == pytest.approx([500 / (5 * 768)] * 10, abs=1e-4)


def test_the_readme_has_a_line_per_option():
    text = (CONF / "README.md").read_text()
    sections = dict(re.findall(r"^## `([\w/]+)/`(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    groups = {path: path.parent.relative_to(CONF).as_posix() for path in OPTIONS}
    assert set(sections) >= set(groups.values())
    for path, group in groups.items():
        assert re.search(rf"^- `{path.stem}`: \S", sections[group], re.MULTILINE), name_of(path)
    for group, section in sections.items():
        for option in re.findall(r"^- `(\w+)`:", section, re.MULTILINE):
            assert (CONF / group / f"{option}.yaml").is_file(), f"{group}/{option} is gone"


def rows_of(benchmark, folder):
    """Files of a task in its own form; returns the overrides that name them."""
    texts = {
        "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "1\ta\tb\tthe man\tthe man\n0\ta\tb\tone\twho\n" * 8,
        "mnli": "sentence1\tsentence2\tgold_label\n"
        + "the man\tone\tneutral\none\tthe\tentailment\nwho\tno\tcontradiction\n" * 6,
        "conll2003": "the O\nman B-PER\n\nother B-LOC\n\n" * 8,
    }
    file = folder / ("rows.txt" if benchmark == "conll2003" else "rows.tsv")
    file.write_text(texts[benchmark])
    further = ["benchmark.further=[]"] if benchmark == "mnli" else []
    return [*(f"benchmark.{part}_file={file}" for part in ("train", "eval")), *further]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("benchmark", "student", "matches"), [("mnli", "t3", 8), ("mrpc", "t4_tiny", 10), ("conll2003", "bigru", 0)]
)
def test_the_stages_of_a_recipe_run(benchmark, student, matches, bert_teacher, shared_cache, tmp_path):
    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict

    from potstill.config import TrainConfig, config_folder, register
    from potstill.config.typed import typed
    from potstill.runs import evaluate as evaluate_run
    from potstill.runs import train as train_run
    from potstill.runs.pipeline_stages import check, plan, write_record

    words = [
        "experiment=textbrewer", f"benchmark={benchmark}", f"student={student}", f"teacher.model={bert_teacher}",
        *rows_of(benchmark, tmp_path),
        f"data.cache={shared_cache}", "data.max_length=32", "data.batch_size=4", "trainer.max_steps=2",
        "logger=csv", "trainer.enable_progress_bar=false", "checkpoint.every_n_steps=null",
    ]  # fmt: skip
    if student == "t4_tiny":
        sizes = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 32}
        words += [f"student.config.{key}={size}" for key, size in sizes.items()]
    if student == "bigru":
        words += ["student.config.embedding_size=16", "student.config.hidden_size=16"]
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("train", words, return_hydra_config=True)
        choices = config.hydra.runtime.choices
        with open_dict(config):
            del config["hydra"]
        stages, ended = plan(typed(config, TrainConfig), tmp_path / "run", words, choices), []
        for stage in stages:
            check(stages, tmp_path / "run")  # with the models that are there by now
            stage.folder.mkdir(parents=True)
            write_record(tmp_path / "run", stage)
            (train_run.train if stage.command == "train" else evaluate_run.evaluate)(stage.config, stage.folder)
            ended.append(json.loads((stage.folder / "summary.json").read_text()))
    assert [summary.get("train/steps") for summary in ended] == [2, 0, 2, 2, None]
    monitor = f"test/{config.benchmark.monitor}"
    assert {f"{model}/{monitor}" for model in ("teacher", "alone", "kd")} <= ended[-1].keys()
    matched = [name for name in ended[3] if name.startswith("train/loss_match_")]
    assert len(matched) == matches
