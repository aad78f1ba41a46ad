"""The notebooks run from top to bottom without a network, and are stored with their outputs."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
if not all(importlib.util.find_spec(name) for name in ("nbclient", "ipykernel")):
    pytest.skip("nbclient and ipykernel are not installed; pip install 'potstill[dev]'", allow_module_level=True)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cells):
    """The kinds of results of each cell: values and pictures, without log lines."""
    return [{kind for output in cell.outputs for kind in output.get("data", ())} for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_outputs_and_linked(path):
    import nbformat

    cells = code_cells(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert cells[-1].outputs
    assert f"notebooks/{path.name}" in (ROOT / "README.md").read_text()


@pytest.mark.integration
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    """With fewer steps of training than it is stored with."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # models and text of the run
    stored = nbformat.read(path, as_version=4)
    expected = kinds(code_cells(stored))
    for cell in code_cells(stored):
        cell.source = re.sub(r'("(?:max_steps|val_check_interval)": )\d+', r"\g<1>20", cell.source)
    NotebookClient(stored, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert kinds(code_cells(stored)) == expected
