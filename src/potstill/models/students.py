"""Students made from a teacher's layers or from a configuration, and which of their parameters train."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModel, DistilBertConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from potstill.errors import ConfigError, KeyNameError, PairError
from potstill.models.backbone import task_head
from potstill.models.heads import Head, Problem
from potstill.models.load import AUTO_CLASSES, TASK_CLASSES, keep_pooler, name_labels
from potstill.models.pretrained import make_from_config
from potstill.models.specs import ARCHITECTURES, attention_error, check_layers, unknown_architecture, vocabularies_fit
from potstill.models.views import view_of

State = dict[str, Tensor]

_DISTILBERT_NORM_EPS = 1e-12  # of its layer norms, which no setting changes
_BERT_TO_DISTILBERT_BLOCK = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
_BERT_TO_DISTILBERT = {
    "bert.embeddings.word_embeddings": "distilbert.embeddings.word_embeddings",
    "bert.embeddings.LayerNorm": "distilbert.embeddings.LayerNorm",
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
    "cls.predictions.decoder": "vocab_projector",
    "classifier": "classifier",
    "qa_outputs": "qa_outputs",
}
_BERT_TO_DISTILBERT_CONFIG = {
    "num_attention_heads": "n_heads",
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "hidden_act": "activation",
}
_COMMON_CONFIG = ("vocab_size", "max_position_embeddings", "initializer_range", "tie_word_embeddings", "pad_token_id",
                  "bos_token_id", "eos_token_id", "id2label", "label2id", "problem_type")  # fmt: skip
# Arguments that transformers reads though its configurations do not declare them.
_UNDECLARED = {
    "modernbert": ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"),
    "deberta-v2": ("position_buckets", "norm_rel_ebd", "share_att_key", "embedding_size", "attention_head_size",
                   "pooler_hidden_size"),
    "gemma3_text": ("sliding_window_pattern", "rope_local_base_freq", "rope_theta"),
    "gpt_neox": ("rotary_pct", "rotary_emb_base"),
}  # fmt: skip
# Modules of a student's task head that the teacher's head lacks.
_OWN_HEAD: dict[tuple[str, Head], tuple[str, ...]] = {("distilbert", "sequence"): ("pre_classifier.",)}


def student_from_layers(
    teacher: PreTrainedModel,
    layers: Sequence[int],
    *,
    architecture: str | None = None,
    vocab_transform: bool = True,
    attention: str | None = None,
) -> PreTrainedModel:
    """Make a shallower student from a teacher's blocks, embeddings and head (Sanh et al. 2019, section 3).

    With all layers the student computes the same as the teacher, up to rounding. Its weights are float32 copies. (The
    classification heads of BERT and DistilBERT differ: the student gets the last layer, and its `pre_classifier`
    stays newly initialised.)

    Args:
        teacher: a language model, or a task model.
        layers: blocks of the teacher, increasing, counted from 0.
        architecture: `model_type` of the student; default the teacher's. BERT can also give `distilbert`.
        vocab_transform: copy the head's transform; otherwise it stays newly initialised from torch's generator.
        attention: attention implementation of transformers; default the teacher's.

    Returns:
        The student, in training mode.

    Raises:
        ConfigError: the layers are not the teacher's, `vocab_transform` is false and the head has no transform, or the
            student has no such attention.
        PairError: there is no conversion between the two architectures.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from potstill.models import student_from_layers
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        ...                     intermediate_size=16)
        >>> student = student_from_layers(BertForMaskedLM(config), [0, 2], architecture="distilbert")
        >>> type(student).__name__, student.config.n_layers, student.training
        ('DistilBertForMaskedLM', 2, True)
    """
    source, target = teacher.config.model_type, architecture or teacher.config.model_type
    chosen = check_layers(layers, teacher.config.num_hidden_layers, "student.layers", source)
    if source == target:
        student, state = _same_architecture(teacher, chosen)
    elif convert := CONVERSIONS.get((source, target)):
        student, state = convert(teacher, chosen)
    else:
        known = ", ".join(f"{a} -> {b}" for a, b in CONVERSIONS)
        raise PairError(
            f"student.architecture={target}: a {source} teacher's layers cannot be converted to it; "
            f"expected {source} itself, or one of: {known}"
        )
    head = task_head(teacher)
    transform = () if head is not None else tuple(f"{name}." for name in view_of(student).head_modules)
    if not (vocab_transform or transform):
        raise ConfigError(f"student.vocab_transform=false: the head of {target} has no transform")
    fresh = () if vocab_transform else transform
    if head is not None and source != target:
        fresh = _OWN_HEAD.get((target, head), ())
    state = {name: tensor for name, tensor in state.items() if not name.startswith(fresh)}
    missing, unexpected = student.load_state_dict(state, strict=False)
    if unexpected or not all(name.startswith(fresh) for name in missing):
        raise RuntimeError(f"{source} -> {target}: missing {missing}, unexpected {unexpected}")
    if attention is not None:
        set_attention(student, attention)
    return student


def student_from_config(
    settings: Mapping[str, Any],
    *,
    vocab_size: int,
    pad_token_id: int | None,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    cls_token_id: int | None = None,
    sep_token_id: int | None = None,
    labels: Sequence[str] | None = None,
    head: Head = "sequence",
    problem: Problem | None = None,
    attention: str = "sdpa",
) -> PreTrainedModel:
    """Make a student from scratch, initialised from torch's generator.

    Args:
        settings: `model_type` and any argument of that architecture's transformers configuration; they override the
            following arguments.
        vocab_size: of the tokenizer.
        pad_token_id: of the tokenizer, as are the further ids. Encoders use `cls_token_id` and `sep_token_id` as begin
            and end of sequence if the tokenizer has no others.
        bos_token_id: begin of sequence.
        eos_token_id: end of sequence.
        cls_token_id: classification token.
        sep_token_id: separator.
        labels: of a task model; empty for one that gives a score; None: a language model.
        head: what a task model labels.
        problem: what its head is trained for; see `name_labels`.
        attention: attention implementation of transformers.

    Returns:
        The student, in training mode.

    Raises:
        KeyNameError: an unknown argument.
        ConfigError: an unknown architecture, a value that transformers rejects, or an attention that the student does
            not have.

    Example:
        >>> from potstill.models import student_from_config
        >>> settings = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2}
        >>> student = student_from_config(settings, vocab_size=50, pad_token_id=0)
        >>> type(student).__name__, student.config.vocab_size
        ('GPT2LMHeadModel', 50)
    """
    model_type = settings.get("model_type")
    if model_type not in ARCHITECTURES:
        raise ConfigError(f"student.config.model_type={model_type}: {unknown_architecture(model_type)}")
    bos = cls_token_id if bos_token_id is None else bos_token_id
    eos = sep_token_id if eos_token_id is None else eos_token_id
    tokens = {"vocab_size": vocab_size, "pad_token_id": pad_token_id, "bos_token_id": bos, "eos_token_id": eos}
    tokens |= _encoder_tokens(model_type, cls_token_id, sep_token_id)
    if labels is None:
        student = model_from_config(settings, tokens, AUTO_CLASSES[ARCHITECTURES[model_type].kind])
    else:
        outputs = {} if head == "spans" else {"num_labels": max(len(labels), 1)}
        student = model_from_config(settings, tokens | outputs, TASK_CLASSES[head], labels, problem)
    set_attention(student, attention)
    return student


def encoder_from_config(
    settings: Mapping[str, Any],
    *,
    vocab_size: int,
    pad_token_id: int | None,
    start_id: int | None,
    end_id: int | None,
    attention: str = "sdpa",
) -> PreTrainedModel:
    """As `student_from_config`, a model without a head; `start_id` and `end_id` are around every text."""
    tokens = {"vocab_size": vocab_size, "pad_token_id": pad_token_id, "bos_token_id": start_id, "eos_token_id": end_id}
    tokens |= _encoder_tokens(settings["model_type"], start_id, end_id)
    model = model_from_config(settings, tokens, AutoModel)
    if hasattr(model, "pooler"):
        keep_pooler(model, False)
    set_attention(model, attention)
    return model


def _encoder_tokens(model_type: str, cls_token_id: int | None, sep_token_id: int | None) -> dict[str, int | None]:
    """The ids that only the configurations of some encoders have."""
    known = {entry.name for entry in dataclasses.fields(CONFIG_MAPPING[model_type])}
    named = {"cls_token_id": cls_token_id, "sep_token_id": sep_token_id}
    return {name: number for name, number in named.items() if name in known}


def set_attention(model: PreTrainedModel, attention: str) -> None:
    """Set the attention implementation of a student; a recurrent one has none, and some have `eager` alone.

    Raises:
        ConfigError: the architecture does not have it, or a package that it needs is not installed.
    """
    facts = ARCHITECTURES.get(model.config.model_type)
    if facts is not None and not facts.attention:
        return
    if facts is not None and facts.own_attention:
        if error := attention_error(model.config.model_type, attention):
            raise ConfigError(f"student.attention={attention}: {error}")
        return
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"student.attention={attention}: a {model.config.model_type} does not support it here ({reason})"
        ) from error


def model_from_config(
    settings: Mapping[str, Any],
    tokens: Mapping[str, Any],
    auto_class: Any,
    labels: Sequence[str] | None = None,
    problem: Problem | None = None,
) -> PreTrainedModel:
    """Make a model of a class of transformers, initialised from torch's generator.

    Args:
        settings: `model_type`, one that transformers has, and any argument of its configuration.
        tokens: further arguments, which `settings` override.
        auto_class: of transformers, such as `AutoModelForMaskedLM`.
        labels: of a task model (see `name_labels`); None of others.
        problem: the `problem_type` of a task model's head; None of others.

    Raises:
        KeyNameError: an unknown argument.
        ConfigError: a value that transformers rejects.
    """
    arguments = dict(settings)
    model_type = arguments.pop("model_type")
    config_class = CONFIG_MAPPING[model_type]
    _check_arguments(arguments, config_class, model_type)
    try:
        config = AutoConfig.for_model(model_type, **{**tokens, **arguments})
        if labels is not None:
            name_labels(config, labels, problem)
        return make_from_config(auto_class, config)
    # The table of activations raises KeyError, nn.Embedding AssertionError (padding index), and torch RuntimeError (a
    # size below 0 or beyond the memory).
    except (ValueError, TypeError, KeyError, AssertionError, RuntimeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"student.config={dict(settings)}: {config_class.__name__} cannot be built ({reason})"
        ) from error


def check_tokens(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Check that two models can read the same token ids.

    Heads may be padded (see `specs.vocabularies_fit`); the padding token must be the same if both name one.

    Raises:
        PairError: they cannot.
    """
    ours, theirs = student.config.vocab_size, teacher.config.vocab_size
    if not vocabularies_fit(ours, theirs):
        raise PairError(
            f"student.model has a vocabulary of {ours}, teacher.model one of {theirs}: both must use one tokenizer"
        )
    pads = (student.config.pad_token_id, teacher.config.pad_token_id)
    if None not in pads and pads[0] != pads[1]:
        raise PairError(
            f"student.model has pad_token_id {pads[0]}, teacher.model {pads[1]}: both must use one tokenizer"
        )


def _same_architecture(teacher: PreTrainedModel, layers: list[int]) -> tuple[PreTrainedModel, State]:
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [teacher.config.layer_types[layer] for layer in layers]
    # Neither the path nor the dtype is that of the teacher.
    config.name_or_path, config.dtype = "", "float32"
    blocks, student = _blocks_prefix(teacher), type(teacher)(config)
    if hasattr(teacher, "pooler"):  # a base model, by itself
        keep_pooler(student, teacher.pooler is not None)
    return student, _renumber(teacher.state_dict(), blocks, blocks, layers)


def _bert_to_distilbert(teacher: PreTrainedModel, layers: list[int]) -> tuple[PreTrainedModel, State]:
    """DistilBERT from BERT's layers (Sanh et al. 2019, `extract_distilbert`).

    DistilBERT has no token types: the embedding of a first sentence is added to the positions, so that its embeddings
    are those of BERT. (The published script omits it.)
    """
    config, head = teacher.config, task_head(teacher)
    if config.layer_norm_eps != _DISTILBERT_NORM_EPS:
        raise PairError(
            f"student.architecture=distilbert: the teacher's layer_norm_eps is {config.layer_norm_eps}, DistilBERT's "
            f"is {_DISTILBERT_NORM_EPS}, so its layers would compute something else; use student.architecture=bert"
        )
    settings = {name: getattr(config, source) for source, name in _BERT_TO_DISTILBERT_CONFIG.items()}
    settings |= {name: getattr(config, name) for name in _COMMON_CONFIG}
    auto_class = AUTO_CLASSES["masked"] if head is None else TASK_CLASSES[head]
    bare = teacher.base_model is teacher
    student: PreTrainedModel = make_from_config(
        AutoModel if bare else auto_class, DistilBertConfig(n_layers=len(layers), **settings)
    )
    student.config._attn_implementation = config._attn_implementation
    source, ours = teacher.state_dict(), "distilbert."
    if bare:
        source = {f"bert.{name}": tensor for name, tensor in source.items() if not name.startswith("pooler.")}
    blocks = f"{ours}{view_of(student).blocks}."
    old = _renumber(source, f"bert.{view_of(teacher).blocks}.", blocks, layers)
    state = {}
    for name, tensor in old.items():
        module, _, leaf = name.rpartition(".")
        if module.startswith(blocks):
            number, _, part = module.removeprefix(blocks).partition(".")
            state[f"{blocks}{number}.{_BERT_TO_DISTILBERT_BLOCK[part]}.{leaf}"] = tensor
        elif module in _BERT_TO_DISTILBERT:
            state[f"{_BERT_TO_DISTILBERT[module]}.{leaf}"] = tensor
    positions, types = (old[f"bert.embeddings.{name}_embeddings.weight"] for name in ("position", "token_type"))
    state["distilbert.embeddings.position_embeddings.weight"] = positions + types[0]
    return student, {name.removeprefix(ours): own for name, own in state.items()} if bare else state


CONVERSIONS: dict[tuple[str, str], Callable[[PreTrainedModel, list[int]], tuple[PreTrainedModel, State]]] = {
    ("bert", "distilbert"): _bert_to_distilbert
}


def _blocks_prefix(model: PreTrainedModel) -> str:
    base = "" if model.base_model is model else f"{model.base_model_prefix}."
    return f"{base}{view_of(model).blocks}."


def _renumber(state: State, old: str, new: str, layers: list[int]) -> State:
    """Keep the chosen blocks under their new numbers, and everything outside blocks."""
    number_of = {str(layer): str(number) for number, layer in enumerate(layers)}
    renumbered = {}
    for name, tensor in state.items():
        if not name.startswith(old):
            renumbered[name] = tensor
            continue
        layer, _, rest = name.removeprefix(old).partition(".")
        if layer in number_of:
            renumbered[f"{new}{number_of[layer]}.{rest}"] = tensor
    return renumbered


def _check_arguments(arguments: Mapping[str, Any], config_class: type[PreTrainedConfig], model_type: str) -> None:
    known = {entry.name for entry in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    known |= set(_UNDECLARED.get(model_type, ()))
    for name in arguments:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            own = ", ".join(inspect.get_annotations(config_class))
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {own}"
            raise KeyNameError(f"student.config.{name}={arguments[name]}: {model_type} has no such argument; {hint}")
