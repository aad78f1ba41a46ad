import pytest
import torch
from torch.testing import assert_close

from potstill.errors import ConfigError, ModelError, PackageError, WeightsError
from potstill.evaluation.efficiency import count_parameters
from potstill.evaluation.latency import Timed, measure_latencies
from potstill.models.export.runtime import ExportedModel


def test_logits_and_default_inputs(exports, make_batch):
    _, folder = exports("bert", "sequence")
    exported, batch = ExportedModel(folder), make_batch(3, 8, types=2)
    assert_close(exported(*batch.values()), exported.run(batch)["logits"])
    ids = batch["input_ids"]
    assert_close(exported(ids), exported(ids, torch.ones_like(ids), torch.zeros_like(ids)))
    assert not torch.equal(exported(ids), exported(**batch))


def test_spans_are_start_and_end(exports, make_batch):
    _, folder = exports("bert", "spans")
    exported, batch = ExportedModel(folder), make_batch(2, 6)
    both, found = exported(**batch), exported.run(batch)
    assert both.shape == (2, 6, 2)
    assert torch.equal(both[..., 0], found["start_logits"])
    assert torch.equal(both[..., 1], found["end_logits"])


def test_padding_changes_nothing(exports):
    _, folder = exports("bert", "tokens")
    ids = torch.tensor([[5, 6, 7]])
    padded = torch.tensor([[5, 6, 7, 1, 1]])
    exported = ExportedModel(folder)
    assert_close(exported(padded, (padded != 1).long())[:, :3], exported(ids), atol=1e-5, rtol=0)


def test_threads_and_size(exports):
    _, folder = exports("bert", "sequence")
    ids = torch.arange(4, 16).reshape(2, 6)
    one, two = ExportedModel(folder, threads=1), ExportedModel(folder, threads=2)
    assert one._session.get_session_options().intra_op_num_threads == 1
    assert two._session.get_session_options().intra_op_num_threads == 2
    assert_close(one(ids), two(ids))
    assert one.size_mb == (folder / "model.onnx").stat().st_size / 1e6
    with pytest.raises(ConfigError, match=r"^export: threads=0"):
        ExportedModel(folder, threads=0)


def test_its_latency_is_measured_like_that_of_other_models(exports):
    _, folder = exports("bert", "sequence")
    exported = ExportedModel(folder, threads=1)
    assert measure_latencies([Timed(exported)], batch=2, length=8)[0].p50 > 0
    assert count_parameters(exported)["total"] == 0
    with pytest.raises(ModelError, match=r"^benchmark.lengths=49: .*48"):
        measure_latencies([Timed(exported)], batch=1, length=49)


def test_too_long_a_text(exports):
    _, folder = exports("roberta", "masked")
    exported = ExportedModel(folder)
    assert exported.max_length == 46
    with pytest.raises(ModelError, match=r"47 .*46"):
        exported(torch.full((1, 47), 5))


def test_other_folders_are_rejected(exports, tmp_path):
    _, folder = exports("bert", "sequence")
    with pytest.raises(WeightsError, match=r"model\.onnx"):
        ExportedModel(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(WeightsError, match=r"config\.json"):
        ExportedModel(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json"):
        ExportedModel(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(WeightsError, match=r"model\.onnx: "):
        ExportedModel(tmp_path)


def test_a_missing_package_is_named(tmp_path, missing):
    missing("onnxruntime")
    with pytest.raises(PackageError, match=r"^export: onnxruntime .*potstill\[export\]"):
        ExportedModel(tmp_path)
