"""What is stored of a lesson: nothing that differs from run to run for no good reason."""

import run_notebooks
from nbformat.v4 import new_code_cell, new_notebook, new_output

WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "f3a1"}, "text/plain": "A slider"}


def test_of_a_widget_only_its_text_is_stored():
    cell = new_code_cell("slider", outputs=[new_output("display_data", data=WIDGET), new_output("stream", text="1\n")])
    run_notebooks.normalise(new_notebook(cells=[cell]))
    assert cell.outputs[0].data == {"text/plain": "A slider"}
    assert cell.outputs[1].text == "1\n"


def test_times_are_not_stored():
    cell = new_code_cell("1", metadata={"execution": {"iopub.status.idle": "noon"}, "tags": ["exercise"]})
    run_notebooks.normalise(new_notebook(cells=[cell]))
    assert cell.metadata == {"tags": ["exercise"]}
