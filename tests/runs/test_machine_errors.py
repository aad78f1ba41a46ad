"""What is said where the machine fails; that runs and evaluations say it is in integration/."""

import pytest
import torch

from potstill.errors import TrainingError
from potstill.runs.machine_errors import as_user_errors

JUDGED = ["model=x", "benchmark=mlm"]


@pytest.mark.parametrize(
    ("size", "said"), [(8, "data.eval_batch_size=4 or a smaller data.max_length"), (1, "a smaller data.max_length")]
)
def test_out_of_memory_in_an_evaluation_names_the_options_to_change(size, said, compose_config):
    config = compose_config(*JUDGED, f"data.eval_batch_size={size}", name="evaluate")
    with pytest.raises(TrainingError) as error, as_user_errors(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert str(error.value) == f"data.eval_batch_size={size}: out of memory on the device; try {said}"


def test_other_errors_are_unchanged(compose_config):
    with pytest.raises(RuntimeError, match="shapes"), as_user_errors(compose_config(*JUDGED, name="evaluate")):
        raise RuntimeError("shapes do not fit")
