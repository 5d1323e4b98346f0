"""The notebook in examples/, run as Jupyter runs it, and held against the outputs that it was committed with."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "autoglm.ipynb"


def printed(notebook: Any) -> list[str]:
    """Return what each cell of code printed."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(each.text for each in cell.outputs if each.output_type == "stream") for cell in code]


def table(notebook: Any) -> list[str]:
    """Return the first column of the table of stages and gates."""
    (shown,) = (
        output.data["text/markdown"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "execute_result"
    )
    return re.findall(r"^\| ([\w :]+) \|", shown, re.MULTILINE)


def test_it_prints_today_what_it_was_committed_with(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    committed, fresh = (nbformat.read(NOTEBOOK, 4) for _ in range(2))
    NotebookClient(fresh, timeout=None, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    assert printed(fresh) == printed(committed)
    assert table(fresh) == table(committed)
    assert {"prefill", "decode", "cache: image", "gate: image", "gate: audio"} <= set(table(fresh))


def test_its_file_is_clean() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    outputs = str([cell.get("outputs") for cell in notebook.cells])
    assert not re.search(r"/(home|root|tmp|work|usr)/|127\.0\.0\.1|Warning|Error", outputs)
    assert all(cell.outputs for cell in notebook.cells[2:] if cell.cell_type == "code")
