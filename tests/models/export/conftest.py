import importlib.util

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

PAD = 1
STANDARD = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 48,
}
SIZES = {
    "bert": STANDARD,
    "roberta": STANDARD | {"type_vocab_size": 1},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 48},
    "electra": STANDARD | {"embedding_size": 8},
    "modernbert": STANDARD | {"local_attention": 4, "cls_token_id": 0, "sep_token_id": 2},
    "deberta-v2": STANDARD
    | {"relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm", "share_att_key": True}
    | {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 48},
    "llama": STANDARD | {"num_key_value_heads": 2},
    "qwen3": STANDARD | {"num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": STANDARD,
    "olmo2": STANDARD,
    "gemma3_text": STANDARD
    | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 3, "sliding_window_pattern": 2},
}
HEADS = {
    "sequence": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "spans": AutoModelForQuestionAnswering,
    "masked": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
}


def tiny(model_type, head, **further):
    """A random model of two blocks whose biases and norms are random too; in training mode, with dropout."""
    torch.manual_seed(0)
    further = {"num_labels": 2 if head == "spans" else 3, "pad_token_id": PAD} | SIZES[model_type] | further
    config = AutoConfig.for_model(model_type, **{"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 2} | further)
    model = HEADS[head].from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.train()


def padded_batch(rows, columns, types=1, vocab_size=60):
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    batch = {"input_ids": torch.randint(4, vocab_size, (rows, columns), generator=generator)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    for row in range(rows):
        batch["attention_mask"][row, max(1, columns - row) :] = 0
        batch["input_ids"][row, max(1, columns - row) :] = PAD
    if types > 1:
        batch["token_type_ids"] = torch.randint(types, (rows, columns), generator=generator)
    return batch


@pytest.fixture(scope="session")
def tokenizer(bert_tokenizer):
    return AutoTokenizer.from_pretrained(bert_tokenizer)


@pytest.fixture(scope="session")
def exports(tmp_path_factory, tokenizer):
    """Call `exports(architecture, head, ...)` for a model and the folder that it was exported to; made once."""
    from potstill.models.export.onnx import export_onnx

    made = {}

    def make(model_type, head, **further):
        key = (model_type, head, *further.items())
        if key not in made:
            model, folder = tiny(model_type, head, **further), tmp_path_factory.mktemp("export") / "onnx"
            export_onnx(model, tokenizer, folder)
            made[key] = model, folder
        return made[key]

    return make


@pytest.fixture
def make_tiny():
    return tiny


@pytest.fixture
def make_batch():
    return padded_batch


@pytest.fixture
def missing(monkeypatch):
    """Call `missing(package)` to simulate that it is not installed."""
    find = importlib.util.find_spec

    def hide(package):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest)
        )

    return hide
