"""Execute the notebooks anew and store light outputs: pictures instead of interactive figures.

    python -m apps.notebooks.execute                  # all of them
    python -m apps.notebooks.execute 3_binding        # by name, with or without .ipynb

The .ipynb files are the source: cells are edited there, by hand or in Jupyter, and this refreshes
what is stored beneath them. A notebook is run from top to bottom on one thread, in an empty folder
of its own. Then what is heavy or tells of the machine is taken out:

- figures: the interactive form is drawn as a PNG of few colours, for pages that only show a
  notebook; whoever runs the cell sees the interactive figure again;
- widgets: their views and their state;
- progress on standard error, times of execution, the version of Python, and the names of this
  machine's folders.

A file is replaced whole, and only when its notebook ran without an error and became light.
Needs nbclient, nbformat, ipykernel, kaleido (with a Chromium) and pillow, all of them in `dev`.
"""

import base64
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.console import fail, say
from interp.errors import MnemoscopeError, ResultError, UnknownNameError

if TYPE_CHECKING:
    from nbformat import NotebookNode

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FIGURE, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
LARGEST = 400_000
"""Bytes of a notebook: what is looked at on a page has to open at once."""
SCALE, COLOURS = 1.5, 256
"""Dots of a picture for each dot of the figure, and the colours of its palette."""
WIDTH, HEIGHT = 900, 500
"""Of figures that leave it to the page."""


def notebooks() -> dict[str, Path]:
    """The notebooks by name, in order."""
    return {path.stem: path for path in sorted(HERE.glob("*.ipynb"))}


def read(path: Path) -> "NotebookNode":
    """A notebook, checked against the format.

    Raises:
        ResultError: missing, or no notebook.
    """
    import nbformat

    try:
        found = nbformat.read(path, as_version=4)
        nbformat.validate(found)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        told = str(error).splitlines()[0]
        raise ResultError(f"{path.name} cannot be read as a notebook: {told}") from None
    return found


def executed(notebook: "NotebookNode", *, seconds: int = 600) -> "NotebookNode":
    """A copy of a notebook with the outputs of a new run: one thread, an empty folder.

    Raises:
        ResultError: a cell raised an error, or took longer than `seconds`.
    """
    from copy import deepcopy

    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    fresh = deepcopy(notebook)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        # sockets in that folder, which is ours alone, instead of ports of the machine
        sockets = {"transport": "ipc", "ip": str(Path(folder) / "kernel")}
        client = NotebookClient(
            fresh, timeout=seconds, kernel_name="python3", record_timing=False,
            resources={"metadata": {"path": folder}}, config=Config({"KernelManager": sockets}),
        )  # fmt: skip
        try:
            client.execute(env=env)
        except CellExecutionError as error:
            raise ResultError(f"a cell raised {error.ename}: {error.evalue}") from error
        except (CellTimeoutError, DeadKernelError) as error:
            raise ResultError(f"a cell did not come to its end: {error}") from error
    return fresh


def light(notebook: "NotebookNode") -> "NotebookNode":
    """A copy without what is heavy or tells of the machine; see above."""
    from copy import deepcopy

    out = deepcopy(notebook)
    out.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in out.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [_light(output) for output in _said(cell.outputs)]
    return out


def write(notebook: "NotebookNode", path: Path) -> None:
    """Replace a file, whole or not at all.

    Raises:
        ResultError: the notebook is larger than `LARGEST`.
    """
    import nbformat

    text = nbformat.writes(notebook)
    size = len(text.encode())
    if size > LARGEST:
        raise ResultError(
            f"{path.name} would have {size:,} bytes, at most {LARGEST:,} are stored: show fewer "
            "figures or rows"
        )
    with tempfile.TemporaryDirectory(prefix=".notebook-", dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        fresh.write_text(text.rstrip("\n") + "\n", "utf-8")
        fresh.replace(path)


# -- outputs ----------------------------------------------------------------------------------


def _said(outputs: Iterable["NotebookNode"]) -> list["NotebookNode"]:
    """Outputs that are kept: no progress, and no widgets that have nothing else to show."""
    kept = [o for o in outputs if o.get("name") != "stderr"]
    return [o for o in kept if set(o.get("data", {"text/plain": ""})) - {WIDGET}]


def _light(output: "NotebookNode") -> "NotebookNode":
    if "text" in output:
        output.text = _nowhere(output.text)
    if FIGURE in output.get("data", {}):
        picture, size, title = _picture(output.data[FIGURE])
        output.data = {"image/png": picture, "text/plain": title}
        output.metadata = {"image/png": size}
    elif "data" in output:
        output.data = {
            kind: _nowhere(value) if isinstance(value, str) and kind.startswith("text/") else value
            for kind, value in output.data.items()
            if kind != WIDGET
        }
    return output


def _picture(figure: Mapping[str, Any]) -> tuple[str, dict[str, int], str]:
    """A figure as PNG in base64, its width and height on a page, and its title."""
    import plotly.io
    from PIL import Image

    drawn = plotly.io.from_json(json.dumps(figure), skip_invalid=True)
    drawn.layout.updatemenus = ()  # a picture has no menus
    width, height = drawn.layout.width or WIDTH, drawn.layout.height or HEIGHT
    raw = drawn.to_image(format="png", width=width, height=height, scale=SCALE)
    few, out = Image.open(io.BytesIO(raw)).convert("RGB").quantize(COLOURS), io.BytesIO()
    few.save(out, "PNG", optimize=True)
    size = {"width": int(width), "height": int(height)}
    title = re.sub(r"<[^>]*>", " ", drawn.layout.title.text or "a figure")
    return base64.b64encode(out.getvalue()).decode(), size, title


def _nowhere(text: str) -> str:
    """Text without the names of this machine's folders; the longest names go first."""
    places = {str(ROOT): ".", str(Path.home()): "~", tempfile.gettempdir(): "tmp"}
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, places[place])
    return text


# -- from a terminal --------------------------------------------------------------------------


def main(names: Sequence[str]) -> None:
    """Execute and write the notebooks named, or all.

    Raises:
        UnknownNameError: no such notebook; nothing is run.
        ResultError: one does not run, or is too large; those before it are written.
    """
    known = notebooks()
    chosen = [name.removesuffix(".ipynb") for name in names] or list(known)
    for name in chosen:
        if name not in known:
            raise UnknownNameError("notebook", name, known)
    for name in chosen:
        say(f"executing {name}")
        write(light(executed(read(known[name]))), known[name])
        say(f"wrote {name}, {known[name].stat().st_size:,} bytes")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MnemoscopeError as error:
        fail(str(error))
        sys.exit(1)
