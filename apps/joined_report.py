"""The joined report: runs of any kinds in one offline page, and in Markdown.

What each run asked and answered comes first, then what the runs are of and say of each other, then
every run's own page as a section, by the same functions that draw it alone.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps import html_parts as h
from apps.joined_runs import Run, across, cautions, models_table, open_runs
from apps.result_kinds import models_of
from interp.errors import ResultError

GENERATOR = "mnemoscope report"
MARK = f"<!-- {GENERATOR} -->"
"""First line of the Markdown: what may be written over."""
_PART = re.compile(r'<h3 id="([^"]+)">(.*?)</h3>')


@dataclass(frozen=True, eq=False)
class Report:
    """What was written, and what it says first."""

    page: Path
    markdown: Path | None
    title: str
    runs: tuple[Run, ...]
    cautions: tuple[str, ...]
    findings: tuple[str, ...]


def report(
    runs: Sequence[Any],
    output: str | Path = "report.html",
    *,
    title: str = "",
    markdown: bool = False,
    force: bool = False,
) -> Report:
    """Join runs in one page.

    Args:
        runs: run folders, or results.
        output: the page; Markdown, where it is asked for, is written beside it.
        title: of the page; says the models when empty.
        force: write over files that are no report of ours.

    Raises:
        ResultError: a run that cannot be read, or a file that cannot or must not be written.
    """
    page = Path(output)
    text = page.with_suffix(".md") if markdown else None
    _check_place(page, text, force=force)
    opened = open_runs(runs)
    told = Report(page, text, title or _title(opened), tuple(opened), tuple(cautions(opened)),
                  tuple(across(opened)))  # fmt: skip
    parts = list(body(told))
    h.write_whole(page, h.document(told.title, parts, generator=GENERATOR))
    if text is not None:
        from apps.markdown_page import to_markdown

        h.write_whole(text, f"{MARK}\n{to_markdown(told.title, parts, page=page.name)}")
    return told


def body(told: Report) -> Iterator[h.Part]:
    """The page without its title."""
    sections = [list(_section(run)) for run in told.runs]
    yield '<main class="report">'
    yield from _summary(told.runs)
    yield _contents(told, sections)
    yield '<h2 id="models">What the runs are of</h2>'
    yield models_table(told.runs)
    yield from (h.note(h.sentence(words)) for words in told.cautions)
    if told.findings:
        yield '<h2 id="across">What the runs say of each other</h2>'
        yield "<ul>" + "".join(f"<li>{h.safe(words)}</li>" for words in told.findings) + "</ul>"
    for section in sections:
        yield from section
    yield "</main>"


def _title(runs: Sequence[Run]) -> str:
    models = dict.fromkeys(name for run in runs for name in models_of(run.result))
    shown = ", ".join(models) if len(models) < 4 else f"{len(models)} models"
    return f"Report on {shown}"


def _check_place(page: Path, text: Path | None, *, force: bool) -> None:
    """Refuse to write over what is no report of ours, before anything is read or written."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise ResultError(f"{page} does not end in .html; name the page, as in report.html")
    for path in (page, text):
        if path is None or not path.exists():
            continue
        if path.is_dir():
            raise ResultError(f"{path} is a folder; name a file, such as {path / 'report.html'}")
        if not force and not _is_report(path):
            raise ResultError(
                f"{path} exists and is no report of mnemoscope; name another --output, or --force"
            )


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(2000).decode("utf-8", "replace")
    except OSError as error:
        raise ResultError(f"{path} cannot be read: {error.strerror}") from None
    return start.startswith(MARK) or f'name="generator" content="{GENERATOR}"' in start


# -- parts of the page ------------------------------------------------------------------------


def _summary(runs: Iterable[Run]) -> Iterator[str]:
    yield '<h2 id="answers">What was asked, and the answers</h2>'
    for run in runs:
        yield f'<h3><a href="#{run.at}">{h.safe(run.title)}</a></h3>'
        yield f'<p class="asked">{h.safe(run.kind.asked(run.result))}</p>'
        yield f'<p class="answer">{h.safe(run.kind.answer(run.result))}</p>'


def _contents(told: Report, sections: Sequence[Sequence[h.Part]]) -> str:
    """Links to every part, in order of the page."""
    first = [("models", "What the runs are of")]
    if told.findings:
        first.append(("across", "What the runs say of each other"))
    items = [_link(name, words) for name, words in first]
    for run, section in zip(told.runs, sections, strict=True):
        inner = _PART.findall("".join(part for part in section if isinstance(part, str)))
        # headings are HTML already
        links = " · ".join(f'<a href="#{name}">{words}</a>' for name, words in inner)
        items.append(f'{_link(run.at, run.title)} <span class="parts">{links}</span>')
    listed = "".join(f"<li>{item}</li>" for item in items)
    return f'<nav class="contents"><h2>Contents</h2><ul>{listed}</ul></nav>'


def _link(name: str, words: str) -> str:
    return f'<a href="#{name}">{h.safe(words)}</a>'


def _section(run: Run) -> Iterator[h.Part]:
    """A run's own page as a section."""
    yield f'<section class="run"><h2 id="{run.at}">{h.safe(run.title)}</h2>'
    about = [run.kind.word, ", ".join(models_of(run.result))]
    if run.folder is not None:
        about.append(f"run folder {run.folder}")
    yield f'<p class="about">{h.safe("; ".join(about))}</p>'
    yield from h.nested(run.kind.body(run.result), run.at)
    yield "</section>"
