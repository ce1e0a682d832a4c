"""One HTML file that holds a whole scan: the answer, figures, tables, settings, provenance.

It opens offline, with plotly.js inside (`apps.html_parts`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps import html_parts as parts
from apps.figure_parts import ranking
from apps.figures import draw
from apps.result_kinds import KINDS
from circuits.scores import METRICS

if TYPE_CHECKING:
    from circuits.scan_result import ScanResult

N_BEST = 20
LEGENDS = {
    "map": "Every head of the model. The brighter, the more often the head's strongest attention "
    "sits on the very token that the model is producing.",
    "ranked": "The best heads with their intervals. Two heads whose whiskers overlap much may "
    "change places in another sample of needles.",
    "profile": "Where in the model the heads sit.",
    "attention": "What retrieval looks like: as each answer token is produced, the head looks at "
    "that token in the context. Choose another head in the menu.",
    "grid": "Left: which questions the model answered, by length of context and place of the "
    "needle. Right: whether the best head copies everywhere alike.",
    "agreement": "Whether the other scores name the same heads. A low value means that the two "
    "scores pick different heads.",
}


def write_page(result: "ScanResult", path: str | Path) -> Path:
    """Write the page of a scan, whole or not at all, and return where it is.

    Raises:
        ResultError: the file cannot be written.
    """
    return parts.write_whole(path, page(result))


def page(result: "ScanResult") -> str:
    """The page's HTML."""
    return parts.document(title(result), body(result))


def title(result: "ScanResult") -> str:
    """What the page is about."""
    return f"Retrieval heads of {result.provenance.model}"


def body(result: "ScanResult") -> Iterator[parts.Part]:
    """The page without its title."""
    yield from parts.head(answer(result), (*result.notes, *KINDS["scan"].caveats))
    if result.trials["passed"].any():
        yield from ("<h2>Figures</h2>", *_figures(result))
        yield from (f"<h2>The {N_BEST} best heads</h2>", _best_table(result))
        yield from ("<h2>What the scores mean</h2>", _score_table(result))
    else:
        yield from ("<h2>Questions that were asked</h2>", _trial_table(result))
    yield from parts.made_by(result.settings, result.provenance)


def answer(result: "ScanResult") -> str:
    """The result in plain words: what was found, and what it rests on."""
    found = brief(result)
    return f"{found} {_trust(result)}" if result.trials["passed"].any() else found


def brief(result: "ScanResult") -> str:
    """What was found, in two or three sentences."""
    if not result.trials["passed"].any():
        return parts.sentence(result.diagnosis())
    heads = ranking(result).dropna(subset=["score"])
    line, n = result.settings["threshold"], len(heads)
    above = int((heads["score"] > line).sum())
    words = [
        f"In {result.provenance.model}, {above} of {n} heads ({100 * above / n:.1f} %) have a "
        f"copy score above {line:g}: for more than {100 * line:g} % of an answer's tokens their "
        "strongest attention sits on that token in the context while the model produces it."
    ]
    if heads["p_above"].notna().all():
        sure = int((heads["p_above"] >= 0.975).sum())
        words.append(
            f"Of these, {sure} stay above it in at least 97.5 % of bootstrap draws over needles."
        )
    first = heads.sort_values("score", ascending=False, kind="stable").head(3)
    words.append(f"The best: {', '.join(_scored(row) for row in first.itertuples())}.")
    return " ".join(words)


def _trust(result: "ScanResult") -> str:
    """What the scores rest on."""
    share, t = result.yields(), result.trials
    words = [
        f"The model answered {int(t['passed'].sum())} of {len(t)} questions about "
        f"{t['needle'].nunique()} needles ({100 * share['passed']:.0f} %; "
        f"{100 * share['exact']:.0f} % word for word, {100 * share['forced']:.0f} % with each "
        "answer token its likeliest); only answered questions count."
    ]
    halves = result.reliability()
    if halves is None:
        words.append("Too few needles were answered to compare two halves of them.")
    else:
        words.append(
            f"Two random halves of the needles share {halves.overlap:.1f} of their top "
            f"{halves.k} heads, and their scores correlate at {halves.pearson:.2f}."
        )
    return " ".join(words)


def _scored(row: Any) -> str:
    if np.isnan(row.low):
        return f"{row.name} at {row.score:.2f} (no interval: one needle)"
    return f"{row.name} at {row.score:.2f} (95 % interval {row.low:.2f} to {row.high:.2f})"


# -- parts of the page ------------------------------------------------------------------------


def _figures(result: "ScanResult") -> Iterator[parts.Part]:
    return parts.figures(lambda kind: draw(result, kind, **_options(result, kind)), LEGENDS)


def _options(result: "ScanResult", kind: str) -> dict[str, Any]:
    """The needle grid shows the best head beside the answers."""
    if kind != "grid":
        return {}
    return {"head": str(ranking(result).sort_values("score", ascending=False)["name"].iloc[0])}


def _best_table(result: "ScanResult") -> str:
    heads = ranking(result).dropna(subset=["score"])
    others = [n for n in (*result.values, *result.roles) if n != "copy"]
    for name in others:
        heads[name] = result.mean(name).reshape(-1)[heads.index]
    heads = heads.sort_values("score", ascending=False, kind="stable").head(N_BEST)
    k, line = result.settings["top"], result.settings["threshold"]
    columns = ["head", "copy score", "95 % interval", f"P(top {k})", f"P(> {line:g})", "roles",
               *(METRICS[n].title if n in METRICS else n for n in others)]  # fmt: skip
    rows = [
        [r["name"], r["score"], _interval(r["low"], r["high"]), r["p_top"], r["p_above"],
         r["roles"].replace("+", ", ") or "–", *(r[n] for n in others)]
        for r in heads.to_dict("records")
    ]  # fmt: skip
    return parts.table(columns, rows)


def _score_table(result: "ScanResult") -> str:
    rows = [
        [m.title, m.formula, _range(m.low, m.high), m.chance, m.source]
        for m in (METRICS[n] for n in (*result.values, *result.roles) if n in METRICS)
    ]
    lead = "T, A and N are the numbers of tokens of the context, the answer and the needle."
    return f"<p>{lead}</p>" + parts.table(["score", "formula", "range", "chance", "source"], rows)


def _trial_table(result: "ScanResult") -> str:
    columns = ["trial", "length", "depth", "value", "generated", "forced", "exact", "rouge"]
    known = [c for c in columns if c in result.trials]
    return parts.table(known, result.trials[known].to_numpy(dtype=object).tolist())


def _interval(low: float, high: float) -> str:
    """Both ends on one line: word joiners keep the dash from breaking it."""
    return "–" if np.isnan(low) else f"{low:.2f}\u2060–\u2060{high:.2f}"


def _range(low: float, high: float) -> str:
    return "any" if np.isinf(low) or np.isinf(high) else f"{low:g} to {high:g}"
