import logging

import onnx
import pytest

from potstill.errors import ConfigError, ModelError, PackageError, WeightsError
from potstill.models.export.onnx import export_int8
from potstill.models.export.runtime import ExportedModel

pytestmark = pytest.mark.slow

# Wide enough for weights, not the graph, to make the size.
WIDE = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 256}
WIDE_GPT2 = {"vocab_size": 500, "n_embd": 64}


@pytest.mark.parametrize(("model_type", "head", "sizes"), [("bert", "masked", WIDE), ("gpt2", "causal", WIDE_GPT2)])
def test_smaller_and_close(exports, make_batch, tmp_path, model_type, head, sizes):
    _, folder = exports(model_type, head, **sizes)
    difference = export_int8(folder, tmp_path / "int8")
    original, small = ExportedModel(folder), ExportedModel(tmp_path / "int8")
    assert small.size_mb < 0.4 * original.size_mb
    batch = make_batch(4, 30, vocab_size=500)
    real = batch["attention_mask"].bool()
    expected, found = original(**batch)[real], small(**batch)[real]
    assert 0 < difference < expected.std()
    assert (found - expected).square().mean().sqrt() < 0.1 * expected.std()
    operations = {node.op_type for node in onnx.load(tmp_path / "int8" / "model.onnx").graph.node}
    assert "MatMulInteger" in operations


def test_the_folder_is_complete(exports, tmp_path):
    _, folder = exports("bert", "masked", **WIDE)
    before = sorted(path.name for path in folder.iterdir())
    handlers = list(logging.getLogger().handlers)
    export_int8(folder, tmp_path / "int8")
    assert sorted(path.name for path in (tmp_path / "int8").iterdir()) == before
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize(("saturates", "most"), [(False, 127), (True, 64)])
def test_weights_have_seven_bits_where_products_saturate(exports, tmp_path, monkeypatch, saturates, most):
    monkeypatch.setattr("potstill.models.export.onnx._products_saturate", lambda: saturates)
    _, folder = exports("bert", "masked", **WIDE)
    export_int8(folder, tmp_path / "int8")
    weights = onnx.load(tmp_path / "int8" / "model.onnx").graph.initializer
    arrays = [onnx.numpy_helper.to_array(weight) for weight in weights if weight.data_type == onnx.TensorProto.INT8]
    assert max(int(abs(array.astype(int)).max()) for array in arrays) == most


def test_a_model_that_is_not_finite_is_not_written(exports, tmp_path):
    _, folder = exports("bert", "masked", **WIDE)
    graph = onnx.load(folder / "model.onnx")
    for weight in graph.graph.initializer:
        if "LayerNorm.bias" in weight.name:
            broken = onnx.numpy_helper.to_array(weight) * float("nan")
            weight.CopyFrom(onnx.numpy_helper.from_array(broken, weight.name))
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((folder / "config.json").read_bytes())
    onnx.save(graph, source / "model.onnx")
    with pytest.raises(ModelError, match="int8"):
        export_int8(source, tmp_path / "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_its_own_source_and_other_folders_are_rejected(exports, tmp_path):
    _, folder = exports("bert", "masked", **WIDE)
    with pytest.raises(ConfigError, match=str(folder)):
        export_int8(folder, folder.parent / "." / folder.name)
    with pytest.raises(WeightsError, match=r"model\.onnx"):
        export_int8(tmp_path, tmp_path / "int8")


def test_a_missing_package_is_named(tmp_path, missing):
    missing("onnx")
    with pytest.raises(PackageError, match=r"^export: onnx .*potstill\[export\]"):
        export_int8(tmp_path, tmp_path / "int8")
