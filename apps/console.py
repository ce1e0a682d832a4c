"""What the command line prints: lines, progress, tables."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def say(text: str) -> None:
    """Print a line as it is."""
    print(text, flush=True)


def fail(text: str) -> None:
    """Print an error: one line, to standard error."""
    print(f"mnemoscope: {' '.join(text.split())}", file=sys.stderr, flush=True)


class Lines:
    """Lines for a person, on standard output; none when a program is reading."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            say(text)

    @contextmanager
    def progress(self, unit: str = "trials") -> Iterator[Callable[[int, int, str], None]]:
        """A progress bar with time left, on standard error; plain lines when that is a file."""
        if self.quiet or not sys.stderr.isatty():
            yield _plain(self, unit)
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(),
            TextColumn(unit), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total, what: bar.update(
                task, completed=done, total=total, description=what[:24] or unit
            )


def _plain(lines: Lines, unit: str) -> Callable[[int, int, str], None]:
    last = -1

    def report(done: int, total: int, what: str) -> None:
        nonlocal last
        if done != last and not what:
            last = done
            lines.say(f"  {done} of {total} {unit}")

    return report


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    safe = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in safe)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table with a title."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 110
    Console(width=width, markup=False, highlight=False).print(table)


def print_frame(title: str, frame: "pd.DataFrame") -> None:
    """A data frame with a title, numbers to three digits."""
    columns = [str(c).replace("_", " ") for c in frame]
    print_table(title, columns, [[_cell(v) for v in row] for row in frame.itertuples(index=False)])


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_mapping(values: Mapping[str, Any]) -> None:
    """Names and values, one a line."""
    width = max(map(len, values))
    for name, value in values.items():
        shown = f"{value:.3f}" if isinstance(value, float) else value
        say(f"{name:{width}}  {shown}")


def show_figures(figures: Mapping[str, Any], output: Path | None, *, as_json: bool) -> None:
    """What a bench measured: into a file where one is named, and on the console."""
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    if as_json:
        say(json.dumps(figures))
    else:
        print_mapping({k: v for k, v in figures.items() if k != "provenance"})


def print_models(*, as_json: bool) -> None:
    """The catalogue of bundled models."""
    from interp.bundled import BUNDLED, model_path

    rows = [
        {
            "name": m.name,
            "hub name": m.hub_name,
            "here": model_path(m.name) is not None,
            "download MB": m.download_mb,
            "licence": m.licence,
            "source": m.source,
            "quantisation": m.quantisation,
        }
        for m in BUNDLED.values()
    ]
    if as_json:
        say(json.dumps(rows))
        return
    for row in rows:
        print_mapping(row)
        say("")
