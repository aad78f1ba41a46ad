"""Jobs of a sweep as tasks of Ray, in parallel; one of them fails."""

import json

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'potstill[ray]'")


@pytest.mark.integration
def test_a_sweep_on_a_local_ray(command, text_file, eval_file, tmp_path):
    folder = tmp_path / "sweep"
    done = command(
        "train.py", "-m", "hydra/launcher=ray", "+hydra.launcher.init.num_cpus=2", "data.mlm_share=0.15,7",
        "objective=mlm",
        "student=bert_tiny", "data=text_files", f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]",
        "data.vocabulary_size=200", "data.max_length=32", "data.num_proc=1", "data.batch_size=8", "logger=csv",
        "trainer.max_steps=1", "trainer.enable_progress_bar=false", f"hydra.sweep.dir={folder}", timeout=500,
        RAY_AUTH_MODE="disabled",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert json.loads((folder / "0" / "summary.json").read_text())["train/steps"] == 1
    assert "data.mlm_share=7" in (folder / "1" / "error.txt").read_text()
    assert "data.mlm_share=7" in done.stderr
