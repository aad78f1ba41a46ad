from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    DistilBertForMaskedLM,
)

from potstill.errors import ConfigError, ModelError, PairError
from potstill.models.backbone import backbone_of
from potstill.models.load import load_language_model, name_labels
from potstill.models.preparing import freeze, halve_products, parameter_groups, set_checkpointing, set_dropout
from potstill.models.specs import ARCHITECTURES
from potstill.models.students import check_tokens, student_from_config, student_from_layers
from potstill.models.views import VIEWS

STANDARD = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
# A recurrent student is for tasks alone: test_bigru.py.
LANGUAGE_MODELS = [name for name, architecture in ARCHITECTURES.items() if architecture.attention]
SIZES = dict.fromkeys(LANGUAGE_MODELS, STANDARD) | {
    "distilbert": {"dim": 16, "n_layers": 4, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 32},
    "electra": STANDARD | {"embedding_size": 8},
    "modernbert": STANDARD | {"local_attention": 4, "cls_token_id": 0, "sep_token_id": 2},
    "deberta-v2": STANDARD
    | {"relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm", "share_att_key": True}
    | {"pos_att_type": ["p2c", "c2p"]},
    "gpt2": {"n_embd": 16, "n_layer": 4, "n_head": 4, "n_positions": 32},
    "mistral": STANDARD | {"num_key_value_heads": 2},
    "qwen2": STANDARD
    | {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
    "qwen3": STANDARD
    | {"num_key_value_heads": 2, "head_dim": 8, "use_sliding_window": True, "sliding_window": 3}
    | {"max_window_layers": 2},
    "olmo2": STANDARD | {"num_key_value_heads": 2},
    "gemma3_text": STANDARD
    | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 3, "sliding_window_pattern": 2},
}
TRANSFORMED = [model_type for model_type, view in VIEWS.items() if view.head]
IDS = torch.tensor([[0, 5, 6, 7, 8, 9, 2], [0, 9, 8, 2, 1, 1, 1]])
MASK = IDS.ne(1).long()


def teacher_of(model_type, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        **({"vocab_size": 40, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2} | SIZES[model_type] | settings),
    )
    auto = AutoModelForMaskedLM if ARCHITECTURES[model_type].kind == "masked" else AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def logits_of(model):
    return model.eval()(IDS, attention_mask=MASK).logits


@pytest.mark.parametrize(("source", "target"), [(name, name) for name in LANGUAGE_MODELS] + [("bert", "distilbert")])
def test_a_student_with_all_layers_is_the_teacher(source, target):
    teacher = teacher_of(source)
    student = student_from_layers(teacher, range(4), architecture=target)
    assert student.config.model_type == target
    assert student.training
    assert_close(logits_of(student), logits_of(teacher), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(name, name) for name in LANGUAGE_MODELS] + [("bert", "distilbert")])
@torch.no_grad()
def test_a_student_runs_the_chosen_blocks(source, target):
    teacher = teacher_of(source)
    student = student_from_layers(teacher, [0, 3], architecture=target).eval()
    assert backbone_of(student).depth == len(student.base_model.get_submodule(VIEWS[target].blocks)) == 2

    whole = backbone_of(teacher)
    flow = whole.embed(IDS, MASK)
    first, _ = whole.blocks(flow, stop=1)
    last, _ = whole.blocks(flow.resume(first), start=3)
    expected = nn.functional.linear(whole.head(whole.finish(last)), *whole.decoder)
    assert_close(logits_of(student), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(name, name) for name in LANGUAGE_MODELS] + [("bert", "distilbert")])
def test_no_tensor_is_shared_and_words_stay_tied(source, target):
    teacher = teacher_of(source)
    student = student_from_layers(teacher, [0, 2], architecture=target)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(3.0)
    assert_close(teacher.state_dict(), before, atol=0, rtol=0)
    tied = student.get_input_embeddings().weight is student.get_output_embeddings().weight
    assert tied == teacher.config.tie_word_embeddings


@pytest.mark.parametrize("name", TRANSFORMED)
def test_the_transform_of_the_head_can_stay_new(name):
    teacher = teacher_of(name)

    def student(seed):
        torch.manual_seed(seed)
        return student_from_layers(teacher, [0, 3], vocab_transform=False)

    one, same, other = student(1).state_dict(), student(1).state_dict(), student(2).state_dict()
    copied = student_from_layers(teacher, [0, 3]).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    differing = {key for key in one if not torch.equal(one[key], copied[key])}
    assert differing
    assert all(key.startswith(VIEWS[name].head_modules) for key in differing)
    assert any(not torch.equal(one[key], other[key]) for key in differing)


def test_a_head_without_transform_rejects_the_setting():
    with pytest.raises(ConfigError, match=r"^student.vocab_transform=false: .*gpt2"):
        student_from_layers(teacher_of("gpt2"), [0], vocab_transform=False)


def test_distilbert_keeps_activation_dropout_and_ids(tmp_path):
    teacher = teacher_of(
        "bert", hidden_act="relu", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, initializer_range=0.05
    )
    student = student_from_layers(teacher, [0, 2], architecture="distilbert")
    config = student.config
    assert isinstance(student, DistilBertForMaskedLM)
    assert (config.activation, config.dropout, config.attention_dropout) == ("relu", 0.2, 0.3)
    assert (config.initializer_range, config.pad_token_id, config.eos_token_id) == (0.05, 1, 2)
    assert config._attn_implementation == teacher.config._attn_implementation
    whole = student_from_layers(teacher, range(4), architecture="distilbert")
    assert_close(logits_of(whole), logits_of(teacher), atol=1e-5, rtol=1e-5)
    whole.save_pretrained(tmp_path)
    again = DistilBertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(logits_of(again), logits_of(whole))


def test_distilbert_needs_its_own_epsilon():
    with pytest.raises(PairError, match=r"^student.architecture=distilbert: .*1e-05.*1e-12"):
        student_from_layers(teacher_of("bert", layer_norm_eps=1e-5), [0], architecture="distilbert")


@pytest.mark.parametrize(("source", "target"), [("roberta", "distilbert"), ("bert", "gpt2"), ("bert", "x")])
def test_other_conversions_are_rejected(source, target):
    with pytest.raises(PairError, match=f"^student.architecture={target}: .*{source} .*bert -> distilbert"):
        student_from_layers(teacher_of(source), [0], architecture=target)


@pytest.mark.parametrize("layers", [[], [4], [1, 0], [0.0]])
def test_invalid_layers(layers):
    with pytest.raises(ConfigError, match=r"student\.layers="):
        student_from_layers(teacher_of("bert"), layers)


def test_a_low_precision_teacher_gives_a_float32_student_without_its_path(tmp_path):
    teacher_of("bert").bfloat16().save_pretrained(tmp_path / "teacher")
    teacher = AutoModelForMaskedLM.from_pretrained(tmp_path / "teacher", dtype=torch.bfloat16)
    student = student_from_layers(teacher, [0, 1])
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    student.save_pretrained(tmp_path / "student")
    text = (tmp_path / "student" / "config.json").read_text()
    assert str(tmp_path) not in text
    assert '"dtype": "float32"' in text
    assert teacher.config.num_hidden_layers == 4


@pytest.mark.parametrize(
    ("model_type", "layers"), [("qwen2", [1, 2]), ("qwen3", [1, 2]), ("gemma3_text", [1, 2]), ("modernbert", [0, 2])]
)
def test_window_and_full_attention_follow_their_blocks(model_type, layers):
    student = student_from_layers(teacher_of(model_type), layers)
    assert student.config.layer_types == ["full_attention", "sliding_attention"]


def test_a_first_block_of_its_own_stays_the_first():
    with pytest.raises(ConfigError, match=r"^student.layers=\[1,2\]: .*modernbert.* begin with 0"):
        student_from_layers(teacher_of("modernbert"), [1, 2])


def test_all_special_tokens_of_a_student_from_scratch_are_the_tokenizers():
    config = student_from_config({"model_type": "modernbert"} | STANDARD, **TOKENS).config
    assert (config.cls_token_id, config.sep_token_id, config.bos_token_id, config.eos_token_id) == (4, 5, 4, 5)


@pytest.mark.parametrize("source", LANGUAGE_MODELS)
def test_a_classifier_of_all_layers_is_the_teacher(source):
    teacher = classifier_of(source)
    student = student_from_layers(teacher, range(4))
    assert type(student) is type(teacher)
    assert student.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert_close(logits_of(student), logits_of(teacher), atol=1e-5, rtol=1e-5)


def test_a_distilbert_of_a_classifier_has_its_last_layer_and_its_labels():
    teacher = classifier_of("bert")
    student = student_from_layers(teacher, [0, 3], architecture="distilbert")
    assert student.config.architectures is None or "Distil" in student.config.architectures[0]
    assert type(student).__name__ == "DistilBertForSequenceClassification"
    assert student.config.id2label == teacher.config.id2label
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    assert logits_of(student).shape == (2, 3)
    with pytest.raises(ConfigError, match=r"^student.vocab_transform=false"):
        student_from_layers(teacher, [0, 3], vocab_transform=False)


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering"])
def test_a_distilbert_of_all_layers_with_a_head_for_tokens_or_spans_is_the_teacher(head):
    torch.manual_seed(0)
    config = teacher_of("bert").config
    config.id2label = {0: "O", 1: "B-X"}
    teacher = getattr(transformers, f"BertFor{head}")(config).eval()
    student = student_from_layers(teacher, range(4), architecture="distilbert").eval()
    assert type(student).__name__ == f"DistilBertFor{head}"
    assert student.config.id2label == {0: "O", 1: "B-X"}
    ids = torch.randint(4, config.vocab_size, (2, 7))
    for found, expected in zip(student(ids).to_tuple(), teacher(ids).to_tuple(), strict=True):
        assert_close(found, expected, atol=1e-5, rtol=1e-5)


def classifier_of(model_type):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=40, pad_token_id=1, bos_token_id=0, eos_token_id=2,
                                  num_labels=3, **SIZES[model_type])  # fmt: skip
    name_labels(config, ["no", "yes", "maybe"])
    return AutoModelForSequenceClassification.from_config(config).eval()


TOKENS = {"vocab_size": 50, "pad_token_id": 3, "cls_token_id": 4, "sep_token_id": 5}


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_a_student_from_scratch_has_the_ids_of_the_tokenizer(model_type):
    settings = {"model_type": model_type} | SIZES[model_type]
    torch.manual_seed(1)
    model = student_from_config(settings, **TOKENS)
    config = model.config
    assert model.training
    assert (config.vocab_size, config.pad_token_id) == (50, 3)
    assert (config.bos_token_id, config.eos_token_id) == (4, 5)
    assert backbone_of(model).kind == ARCHITECTURES[model_type].kind
    torch.manual_seed(1)
    again = student_from_config(settings, **TOKENS)
    assert_close(again.state_dict(), model.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize(("labels", "problem"), [(("a", "b", "c"), "single_label_classification"), ((), "regression")])
def test_a_classifier_from_scratch(labels, problem):
    model = student_from_config({"model_type": "bert"} | SIZES["bert"], **TOKENS, labels=labels)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.classifier.out_features == model.config.num_labels == max(len(labels), 1)
    assert model.config.problem_type == problem
    assert tuple(model.config.id2label.values()) == (labels or ("score",))


def test_arguments_that_a_configuration_does_not_declare():
    sizes = STANDARD | {"relative_attention": True, "pos_att_type": ["c2p"], "position_buckets": 4}
    student = student_from_config({"model_type": "deberta-v2"} | sizes, **TOKENS)
    assert student.base_model.encoder.rel_embeddings.weight.shape == (8, 16)
    sizes = STANDARD | {"global_attn_every_n_layers": 2}
    config = student_from_config({"model_type": "modernbert"} | sizes, **TOKENS).config
    assert config.layer_types == ["full_attention", "sliding_attention"] * 2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_architecture_with_attention_of_its_own_has_the_default(attention, tmp_path):
    settings = {"model_type": "deberta-v2"} | SIZES["deberta-v2"]
    student = student_from_config(settings, **TOKENS, attention=attention)
    assert student.config._attn_implementation == "eager"
    student.save_pretrained(tmp_path)
    loaded = load_language_model("teacher.model", str(tmp_path), need_head=True, attention=attention)
    assert_close(logits_of(loaded), logits_of(student))
    with pytest.raises(ConfigError, match=r"^student.attention=flex_attention: .*deberta-v2"):
        student_from_config(settings, **TOKENS, attention="flex_attention")


def test_settings_override_the_tokenizer():
    settings = {"model_type": "roberta", "vocab_size": 64, "pad_token_id": 0, "num_hidden_layers": 1}
    config = student_from_config(settings | {"hidden_size": 12}, **TOKENS, bos_token_id=8).config
    assert (config.vocab_size, config.pad_token_id, config.bos_token_id, config.num_hidden_layers) == (64, 0, 8, 1)


def test_standard_names_are_accepted():
    model = student_from_config({"model_type": "distilbert", "hidden_size": 24, "num_hidden_layers": 1}, **TOKENS)
    assert (model.config.dim, model.config.n_layers) == (24, 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"hidden_size": 8}, "^student.config.model_type=None: .*bert"),
        ({"model_type": "bart"}, "^student.config.model_type=bart: "),
        ({"model_type": "bert", "n_layer": 2}, "^student.config.n_layer=2: "),
        ({"model_type": "distilbert", "intermediate_size": 2}, "^student.config.intermediate_size=2: .*hidden_dim"),
        ({"model_type": "bert", "hiden_size": 2}, "^student.config.hiden_size=2: .* hidden_size"),
        ({"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3}, "multiple of the number"),
        ({"model_type": "bert", "hidden_size": "wide"}, "BertConfig .*hidden_size"),
        ({"model_type": "bert", "hidden_size": 12, "hidden_act": "jelu"}, "BertConfig .*jelu"),
        ({"model_type": "bert", "hidden_size": 12, "pad_token_id": 99}, "BertConfig .*[Pp]adding_idx"),
    ],
)
def test_invalid_settings(settings, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        student_from_config(settings, **TOKENS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_a_student_has_the_given_attention(attention):
    scratch = student_from_config({"model_type": "bert"} | SIZES["bert"], **TOKENS, attention=attention)
    teacher = teacher_of("bert")
    made = [
        student_from_layers(teacher, [0], architecture=target, attention=attention) for target in ("bert", "distilbert")
    ]
    for student in (scratch, *made):
        assert student.base_model.config._attn_implementation == attention
    assert teacher.config._attn_implementation == "sdpa"
    assert student_from_layers(made[0], [0]).config._attn_implementation == attention


def test_an_attention_that_the_student_does_not_have():
    with pytest.raises(ConfigError, match=r"^student.attention=flex_attention: .*gpt2") as caught:
        student_from_config({"model_type": "gpt2"} | SIZES["gpt2"], **TOKENS, attention="flex_attention")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chosen", [["student=bert_tiny"], ["student.layers=[0]"]])
def test_the_attention_of_a_tasks_student_is_that_of_the_configuration(chosen, compose_config):
    from potstill.data.tasks.splits import task_of
    from potstill.methods.task.build import build_student

    config = compose_config("objective=task_kd", "benchmark=sst2", *chosen, "student.attention=eager")
    vocabulary = SimpleNamespace(size=40, pad_id=1, start_id=0, end_id=2)
    student = build_student(config, task_of(config.benchmark), vocabulary, classifier_of("bert"))
    assert student.config._attn_implementation == "eager"


def test_freezing():
    model = student_from_layers(teacher_of("bert"), [0])
    freeze(model, positions=False, token_types=False)
    assert all(parameter.requires_grad for parameter in model.parameters())
    freeze(model, positions=True, token_types=True)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"bert.embeddings.position_embeddings.weight", "bert.embeddings.token_type_embeddings.weight"}


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_without_dropout_training_mode_computes_what_evaluation_does(model_type):
    model = teacher_of(model_type)
    saved = model.config.to_dict()
    set_dropout(model, 0.0)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        trained, evaluated = model.train()(ids).logits, model.eval()(ids).logits
    assert torch.equal(trained, evaluated)
    assert model.config.to_dict() == saved


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "modernbert", "gpt_neox", "qwen3"])
def test_dropout_is_set_everywhere(model_type):
    model = teacher_of(model_type)
    set_dropout(model, 0.5)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert not torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_recomputed_parts_give_the_same_gradients(model_type, mode):
    models = [teacher_of(model_type) for _ in range(2)]
    set_checkpointing(models[1], mode)
    kept = []
    for model in models:
        backbone, sizes = backbone_of(model.train()), []
        torch.manual_seed(3)  # of the dropout
        flow = backbone.embed(IDS, MASK)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            first, _ = backbone.blocks(flow, 0, 2)
            second, _ = backbone.blocks(flow.resume(first), 2)
        kept.append(sum(sizes))
        (backbone.finish(second).square().sum() + first.square().sum()).backward()
    assert kept[1] < kept[0] / 2
    for name, parameter in models[0].named_parameters():
        again = models[1].get_parameter(name).grad
        assert (parameter.grad is None) == (again is None)
        assert again is None or torch.equal(again, parameter.grad), name


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_halved_weights_give_the_products_of_autocast(model_type):
    model = freeze_all(teacher_of(model_type))
    embeddings = model.get_input_embeddings().weight.clone()
    norms = {n: p.dtype for n, p in model.named_parameters() if "norm" in n.lower() or "ln_" in n}
    with torch.autocast("cpu", torch.bfloat16):
        before = model(IDS, attention_mask=MASK).logits
        halve_products(model, torch.bfloat16)
        after = model(IDS, attention_mask=MASK).logits
    assert torch.equal(before, after)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert {model.get_parameter(name).dtype for name in norms} == {torch.float32}
    assert backbone_of(model).decoder[0].dtype == torch.bfloat16


def freeze_all(model):
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_only_existing_embeddings_can_be_frozen(model_type):
    view = VIEWS[model_type]
    for key, name in (("positions", view.positions), ("token_types", view.token_types)):
        setting = {"positions": False, "token_types": False, key: True}
        model = teacher_of(model_type)
        if name is None:
            with pytest.raises(ModelError, match=f"^student.freeze_{key}=true: {model_type} "):
                freeze(model, **setting)
        else:
            freeze(model, **setting)
            assert sum(not parameter.requires_grad for parameter in model.parameters()) == 1


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_parameter_groups(model_type):
    model = teacher_of(model_type)
    model.get_input_embeddings().weight.requires_grad_(False)
    decayed, undecayed = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    no_decay = {names[id(p)] for p in undecayed["params"]}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert no_decay == {name for name in trainable if name.endswith("bias") or "norm" in name.lower() or "ln_" in name}
    assert {names[id(p)] for p in decayed["params"]} == trainable - no_decay
    assert len(decayed["params"]) + len(undecayed["params"]) == len(trainable)


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_rates_fall_by_block(model_type):
    model = teacher_of(model_type)
    rates = {}
    for group in parameter_groups(model, 0.01, lr=1.0, layer_decay=0.5):
        rates |= dict.fromkeys(map(id, group["params"]), group["lr"])
    view, base = backbone_of(model).view, model.base_model
    blocks = base.get_submodule(view.blocks)
    for number, block in enumerate(blocks):
        assert {rates[id(p)] for p in block.parameters()} == {0.5 ** (len(blocks) - number)}
    assert rates[id(model.get_input_embeddings().weight)] == 0.5 ** (len(blocks) + 1)
    relative = [
        p for name, p in base.named_parameters() if "rel_embeddings" in name or name == "encoder.LayerNorm.weight"
    ]
    assert all(rates[id(p)] == 0.5 ** (len(blocks) + 1) for p in relative)
    inside = {id(p) for p in base.parameters()}
    assert {rates[id(p)] for p in model.parameters() if id(p) not in inside} <= {1.0}
    assert len(rates) == len(list(model.parameters()))
    assert parameter_groups(model, 0.01, lr=1.0, layer_decay=0.5)[0]["lr"] == max(rates.values())


def test_empty_groups_are_left_out():
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1
    with pytest.raises(ModelError, match=r"^Linear "):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)
    with pytest.raises(ModelError, match=r"^optimizer\.layer_decay: "):
        parameter_groups(nn.Linear(2, 2), 0.1, lr=1.0, layer_decay=0.5)


def test_tokens():
    teacher = teacher_of("bert")
    check_tokens(teacher, teacher_of("distilbert"))
    check_tokens(teacher, teacher_of("bert", vocab_size=48))
    check_tokens(teacher_of("gpt2", pad_token_id=None), teacher_of("gpt2"))
    with pytest.raises(PairError, match=r"43.* 40"):
        check_tokens(teacher, teacher_of("bert", vocab_size=43))
    with pytest.raises(PairError, match=r"pad_token_id 0, .* 1"):
        check_tokens(teacher, teacher_of("bert", pad_token_id=0))
