"""The page of a function-token run: the answer first, then every dictionary with its controls."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from apps import html_parts as h
from apps.graph_figures import FIGURES
from apps.result_kinds import KINDS

if TYPE_CHECKING:
    import pandas as pd

    from circuits.graph_result import FeatureGraph, StationResult

TABLES = {
    "verdict": "Does a class reach more than its frequency gives?",
    "coverage": "Features reached by the most frequent tokens (the paper's Table 1), with controls",
    "sensitivity": "Other rules for an edge",
    "amounts": "As the text grows",
    "classes": "Degree at equal occurrences, by class",
    "hubs": "Tokens that reach most at equal occurrences",
    "regression": "Degree on occurrences, documents and class (function words of the list)",
    "degrees": "Inequality, slope on frequency, power law against its alternatives",
    "pairs": "Function words beside content tokens of nearly the same frequency",
}
MOST_ROWS = 40


def page(result: "FeatureGraph") -> str:
    """The whole page, offline."""
    return h.document(title(result), body(result))


def title(result: "FeatureGraph") -> str:
    """What the page is about."""
    return f"Function tokens and features of {result.provenance.model}"


def answer(result: "FeatureGraph") -> str:
    """Two sentences: what the run says of the paper's claim."""
    s = result.station()
    t = s.tables["coverage"].iloc[-1]
    over = "more" if t["excess"] > 0 else "no more"
    return (
        f"At {s.key} the {int(t['rank'])} most frequent tokens, {t['cumulative_share']:.0%} of all "
        f"positions, reach {t['of_alive']:.1%} of the features that fired, {over} than the same "
        f"number of positions taken blindly ({t['null_high']:.1%}). {h.sentence(s.verdict)}"
    )


def body(result: "FeatureGraph") -> Iterator[h.Part]:
    """The page without its title."""
    yield from h.head(answer(result), KINDS["function-tokens"].caveats)
    text = result.text
    yield (
        f"<p>Text: {text['tokens']:,} tokens in {text['documents']:,} documents; "
        f"{text['positions']:,} positions counted, {text['training_positions']:,} trained on, in "
        f"{text['blocks']} blocks. {int(result.tokens['function'].sum())} function tokens make "
        f"{result.settings['cut']:.0%} of all occurrences.</p>"
    )
    yield "<h2>Dictionaries</h2>" + _table(result.to_frame())
    for n, s in enumerate(result.stations.values()):
        yield f"<h2>{h.safe(s.key)}: {h.safe(s.site)}</h2>"
        yield from _station(result, s, first=n == 0)
    yield "<h2>Most frequent tokens</h2>" + _table(result.tokens.head(MOST_ROWS))
    yield from h.made_by(result.settings, result.provenance)


def _station(result: "FeatureGraph", s: "StationResult", *, first: bool) -> Iterator[h.Part]:
    yield h.note(h.sentence(s.verdict))
    if first:
        captions = {kind: caption for kind, (_, caption) in FIGURES.items()}
        yield from h.figures(lambda kind: result.figure(kind, s.key), captions)
    for name, title in TABLES.items():
        if name in s.tables:
            yield f"<h3>{h.safe(title)}</h3>{_table(s.tables[name].head(MOST_ROWS))}"
    yield "<h3>Quality, on text that did not train it</h3>" + h.pairs(s.quality)


def _table(frame: "pd.DataFrame") -> str:
    hidden = ("sentence", "claim", "reason") if "verdict" in frame and "class" in frame else ()
    frame = _with_intervals(frame)
    shown = frame.drop(columns=[c for c in hidden if c in frame])
    columns = [str(c).replace("_", " ") for c in shown]
    return h.table(columns, [[_cell(v) for v in row] for row in shown.itertuples(index=False)])


def _with_intervals(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Ratio and interval of each form in one column; what decided stands in the notes above."""
    for form in ("occurrences", "documents"):
        names = [f"{form}_{part}" for part in ("ratio", "low", "high")]
        if set(names) <= set(frame):
            text = [f"{r:.2f} ({a:.2f} to {b:.2f})" for r, a, b in frame[names].to_numpy()]
            frame = frame.drop(columns=names).assign(**{f"ratio at equal {form} (95 %)": text})
    return frame


def _cell(value: Any) -> Any:
    """Counts as they are, other numbers to three digits."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return h.Numeral(f"{value:,}")
    if isinstance(value, float):
        return h.Numeral("-" if value != value else f"{value:.3g}")  # noqa: PLR0124
    return value
