"""The command `report`: runs of any kinds in one page that a person can read, offline."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.console import Lines, say
from apps.options import AsJson, interruptible

if TYPE_CHECKING:
    from apps.joined_report import Report


def register(app: typer.Typer, _bench: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(interruptible(report))


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, of any commands.")],
    output: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Of the page; says the models if not given.")] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown/--no-markdown", help="Also write Markdown beside it.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is no report.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Join runs in one offline page: questions, answers, figures, controls, provenance."""
    from apps.joined_report import report as join

    told = join(runs, output, title=title, markdown=markdown, force=force)
    if as_json:
        say(json.dumps(summary(told)))
        return
    lines = Lines(quiet=False)
    for run in told.runs:
        lines.say(f"{run.title}: {run.kind.answer(run.result)}")
    for words in (*told.findings, *(f"caution: {words}" for words in told.cautions)):
        lines.say(words)
    lines.say(f"page: {told.page.resolve()}")
    if told.markdown is not None:
        lines.say(f"Markdown: {told.markdown.resolve()}")


def summary(told: "Report") -> dict[str, Any]:
    """What was joined, in plain values, for `--json`."""
    return {
        "page": str(told.page),
        "markdown": None if told.markdown is None else str(told.markdown),
        "title": told.title,
        "runs": [
            {
                "folder": None if run.folder is None else str(run.folder),
                "kind": run.kind.name,
                "title": run.kind.title(run.result),
                "model": run.result.provenance.model,
                "asked": run.kind.asked(run.result),
                "answer": run.kind.answer(run.result),
            }
            for run in told.runs
        ],
        "findings": list(told.findings),
        "cautions": list(told.cautions),
    }
