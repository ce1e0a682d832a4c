"""The notebooks: light and whole as they are stored, and still true when they are run anew."""

import base64
import io
import os
import re

import nbformat
import pytest

from apps.notebooks.execute import (
    FIGURE,
    LARGEST,
    WIDGET,
    executed,
    light,
    main,
    notebooks,
    read,
    write,
)
from interp.bundled import model_path
from interp.errors import ResultError, UnknownNameError

NAMES = list(notebooks())
MODEL = "smollm2-135m"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?%|[-+]?\d+\.\d+")
"""Percentages and numbers with a point: what differs in its last digits between machines."""
PLACES = re.compile(r"/(?:home|root|Users|tmp|var|work|opt|usr)/|[A-Z]:\\")
HOSTS = re.compile(r"https?:|www\.|\w\.(?:com|org|io|co)\b")


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def outputs(notebook):
    return [o for cell in code(notebook) for o in cell.outputs]


def said(cell):
    """What a cell says: its printed text and its Markdown."""
    texts = [o.text if "text" in o else o.data.get("text/markdown", "") for o in cell.outputs]
    return "\n".join(filter(None, texts))


def key_figures(notebook):
    return {c.id: said(c) for c in code(notebook) if "key" in c.metadata.get("tags", ())}


def words_and_numbers(text):
    numbers = [float(n.rstrip("%")) / (100 if n[-1] == "%" else 1) for n in NUMBER.findall(text)]
    return NUMBER.sub("#", text), numbers


# -- as they are stored -----------------------------------------------------------------------


def test_there_are_five_in_order():
    assert [name[0] for name in NAMES] == list("12345")


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_notebook_is_valid_and_light(name):
    path = notebooks()[name]
    assert path.stat().st_size <= LARGEST
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.read_text("utf-8").endswith("}\n")


@pytest.mark.parametrize("name", NAMES)
def test_it_was_run_from_top_to_bottom_without_an_error(name):
    notebook = read(notebooks()[name])
    counts = [c.execution_count for c in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert {o.output_type for o in outputs(notebook)} <= {
        "stream", "execute_result", "display_data"
    }  # fmt: skip
    assert not [o for o in outputs(notebook) if o.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_pictures(name):
    notebook = read(notebooks()[name])
    kinds = {kind for o in outputs(notebook) for kind in o.get("data", {})}
    assert kinds <= {"text/plain", "text/html", "text/markdown", "image/png"}
    drawn = [c for c in code(notebook) if re.search(r"(figure|update_layout)\(", c.source)]
    assert drawn
    for cell in drawn:
        (picture,) = [o for o in cell.outputs if "image/png" in o.data]
        raw = base64.b64decode(picture.data["image/png"])
        assert raw.startswith(b"\x89PNG") and raw.endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize("name", NAMES)
def test_it_tells_nothing_of_the_machine_or_of_hosts(name):
    notebook = read(notebooks()[name])
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}
    for cell in notebook.cells:
        assert "execution" not in cell.metadata
        assert not PLACES.search(cell.source) and not HOSTS.search(cell.source)
    for output in outputs(notebook):
        texts = [output.get("text", ""), *output.get("data", {}).values()]
        shown = [t for t in texts if isinstance(t, str) and not t.startswith("iVBOR")]
        assert not [t for t in shown if PLACES.search(t)]


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_with_what_is_learnt_and_the_set_up(name):
    title, setup, *_ = read(notebooks()[name]).cells
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    assert "You will" in title.source and "**Time:**" in title.source
    assert setup == code(read(notebooks()[NAMES[0]]))[0]
    assert setup.source.startswith(
        "try:\n    import circuits\n    import interp\nexcept ImportError"
    )
    assert "%pip install -q 'mnemoscope[app]'" in setup.source and "torch==" not in setup.source


@pytest.mark.parametrize("name", NAMES)
def test_it_has_key_figures(name):
    figures = key_figures(read(notebooks()[name]))
    assert figures and all(figures.values())


# -- the script -------------------------------------------------------------------------------


def notebook_of(*cells):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])


def test_a_run_is_on_one_thread_in_an_empty_folder_and_leaves_its_input_alone():
    made = notebook_of("import os\nprint(os.environ['OMP_NUM_THREADS'], os.listdir(), os.getcwd())")
    fresh = executed(made)
    threads, files, place = fresh.cells[0].outputs[0].text.split(maxsplit=2)
    assert threads == "1" and "notebook-" in place and not os.path.exists(place.strip())
    assert all(name.startswith("kernel-") for name in re.findall(r"'([^']+)'", files))
    assert not made.cells[0].outputs


def test_a_cell_that_fails_is_refused():
    with pytest.raises(ResultError, match="a cell raised ZeroDivisionError: division by zero"):
        executed(notebook_of("1 + 1", "1 / 0"))


def test_what_is_heavy_or_tells_of_the_machine_is_taken_out():
    made = notebook_of("x")
    made.metadata = {"language_info": {"name": "python", "version": "3.11.7"}, "widgets": {"a": 1}}
    cell = made.cells[0]
    cell.metadata["execution"] = {"iopub.status.busy": "now"}
    home = os.path.expanduser("~")
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="50 %"),
        nbformat.v4.new_output("stream", name="stdout", text=f"in {home}/runs"),
        nbformat.v4.new_output("display_data", {WIDGET: {"model_id": "1"}, "text/plain": "Box()"}),
        nbformat.v4.new_output("display_data", {WIDGET: {"model_id": "2"}}),
    ]
    found = light(made)
    assert [o.get("text") for o in found.cells[0].outputs] == ["in ~/runs", None]
    assert found.cells[0].outputs[1].data == {"text/plain": "Box()"}
    assert "execution" not in found.cells[0].metadata and "widgets" not in found.metadata
    assert "version" not in found.metadata.language_info
    assert len(cell.outputs) == 4  # the input stays as it was


def test_an_interactive_figure_becomes_a_picture_of_its_size():
    pytest.importorskip("kaleido")
    from choreographer.browsers import Chromium
    from PIL import Image

    if Chromium.find_browser(skip_local=False) is None:
        pytest.skip("kaleido finds no Chromium here")
    figure = {"data": [{"type": "bar", "x": [1], "y": [2]}],
              "layout": {"width": 300, "height": 200, "title": {"text": "one<br>bar"}}}  # fmt: skip
    made = notebook_of("x")
    made.cells[0].outputs = [nbformat.v4.new_output("display_data", {FIGURE: figure})]
    (output,) = light(made).cells[0].outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert output.data["text/plain"] == "one bar"
    assert output.metadata == {"image/png": {"width": 300, "height": 200}}
    with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as picture:
        assert picture.size == (450, 300) and len(picture.getcolors(1 << 20)) > 1


def test_a_notebook_that_is_too_large_is_not_written(tmp_path):
    path = tmp_path / "small.ipynb"
    write(notebook_of("1"), path)
    before = path.read_bytes()
    assert read(path).cells[0].source == "1"
    with pytest.raises(ResultError, match=r"small.ipynb would have .* bytes, at most 400,000"):
        write(notebook_of("1" * LARGEST), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["small.ipynb"]


def test_an_unknown_name_and_a_file_that_is_no_notebook_are_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 3_binding"):
        main(["3_bindings"])
    path = tmp_path / "broken.ipynb"
    path.write_text("{", "utf-8")
    with pytest.raises(ResultError, match="broken.ipynb cannot be read as a notebook"):
        read(path)


# -- run anew ---------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_says_what_it_said(name):
    if model_path(MODEL) is None:
        pytest.skip(f"{MODEL} is not here: mnemoscope models fetch {MODEL}")
    stored = read(notebooks()[name])
    fresh = executed(stored)
    assert not [o for o in outputs(fresh) if o.output_type == "error"]
    now = key_figures(fresh)
    for cell, text in key_figures(stored).items():
        words, numbers = words_and_numbers(text)
        new_words, new_numbers = words_and_numbers(now[cell])
        assert new_words == words
        assert new_numbers == pytest.approx(numbers, rel=0.1, abs=0.03)
