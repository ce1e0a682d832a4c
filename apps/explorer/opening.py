"""Open runs for the explorer, from folders or from results at hand, and choose its form."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.explorer.payload import OpenRun, build
from apps.result_kinds import kind_of, open_run
from interp.errors import ResultError

if TYPE_CHECKING:
    from apps.explorer.live import Live


def opened(runs: Sequence[Any]) -> list[OpenRun]:
    """Runs by folder or as results, with labels that differ.

    Raises:
        ResultError: a run that is not there, foreign, damaged, or given twice.
    """
    out: list[OpenRun] = []
    seen: set[Path] = set()
    for i, run in enumerate(runs):
        if isinstance(run, str | Path):
            place = Path(run).resolve()
            if place in seen:
                raise ResultError(f"{run} is named twice; name each run once")
            seen.add(place)
            kind, result = open_run(run)
            label = Path(run).name or place.name
        else:
            kind, result = kind_of(run), run
            label = f"{kind.name} {i + 1}" if len(runs) > 1 else kind.name
        taken = {r.label for r in out}
        out.append(OpenRun(label if label not in taken else f"{label} ({i + 1})", kind, result))
    return out


def explore(
    *runs: Any, model: Any = None, export: str | Path | None = None, state: str = ""
) -> Any:
    """Show runs in a notebook, or write them as one offline page.

    Args:
        runs: results, or run folders: scans, validations, binding and graph runs, of any models.
        model: a loaded model that made one of the scans; windows of attention are then read on
            demand, and heads can be ablated.
        export: write an offline page there instead, and return its path.
        state: what is chosen at first, as the part of a page's address behind #.

    Raises:
        ResultError: nothing to show, a damaged run, a model of another scan, no widget library.
    """
    some = opened(runs)
    payload = build(some)
    if export is not None:
        from apps.explorer.page import export as write

        return write(payload, export)
    from apps.explorer.widget import widget

    return widget(payload, live=attach(model, some), state=state)


def attach(model: Any, runs: Sequence[OpenRun]) -> "Live | None":
    """A model ready to be asked; None without one."""
    if model is None:
        return None
    from apps.explorer.live import Live

    return Live(model, runs)


def named(runs: Sequence[OpenRun]) -> str:
    """A title for a page."""
    return "mnemoscope: " + ", ".join(r.label for r in runs)
