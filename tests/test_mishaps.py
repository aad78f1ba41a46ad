"""What is said where the machine fails; that runs and evaluations say it is in integration/."""

import pytest
import torch

from potstill.errors import TrainingError
from potstill.mishaps import told

JUDGED = ["model=x", "benchmark=mlm"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.eval_batch_size=8"], "data.eval_batch_size=8: out of memory on the device; try data.eval_batch_size=4 or a"),
        (["data.eval_batch_size=1"], "data.eval_batch_size=1: out of memory on the device; try a smaller data.max_length"),
    ],
)  # fmt: skip
def test_an_evaluation_without_memory_says_what_to_change(overrides, said, compose_config):
    with (
        pytest.raises(TrainingError) as fault,
        told(compose_config(*JUDGED, *overrides, name="evaluate")),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert str(fault.value).startswith(said)


def test_other_faults_stay_what_they_are(compose_config):
    with pytest.raises(RuntimeError, match="shapes"), told(compose_config(*JUDGED, name="evaluate")):
        raise RuntimeError("shapes do not fit")
