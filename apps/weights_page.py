"""Weights of heads as a reader sees them: page, figures, and two sentences."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from apps import html_parts as h
from apps.result_kinds import KINDS
from apps.validation_parts import (
    ROLES,
    VERDICTS,
    band,
    between,
    hover,
    labelled_rows,
    p_words,
    points,
    set_title,
)
from interp.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from circuits.weight_result import WeightCircuits

CLEAR = 0.05
"""Largest p at which a value is called clear of chance; of each alone, uncorrected."""
MOST_ROWS = 24
INPUTS = {"Q": "query", "K": "key", "V": "value"}
CAPTIONS = {
    "heads": "Copying: does the head raise the token that it attends to (1) or lower it (-1)? "
    "Matching: is a token's key like its own query? Grey: 95 % of random matrices of these shapes.",
    "pairs": "How much of what the earlier head writes is read by the later one, by input. Grey: "
    "95 % of random matrices. Filled: as few of the other earlier heads reach it as the p says.",
}


def page(result: "WeightCircuits") -> str:
    """The page's HTML."""
    return h.document(title(result), body(result))


def title(result: "WeightCircuits") -> str:
    """What the page is about."""
    return f"Weights of heads in {result.provenance.model}"


def answer(result: "WeightCircuits") -> str:
    """How many heads copy by their weights, and the pair that stands out most."""
    copying = [r for r in result.heads if r["kind"] == "copying"]
    clear = [r["head"] for r in copying if r["p_random"] <= CLEAR]
    told = (
        f"{len(clear)} of {len(copying)} heads copy by their weights beyond random matrices"
        f"{': ' if clear else ''}{', '.join(clear)}."
    )
    both = [r for r in result.pairs if _is_clear(r)]
    if not result.pairs:
        return f"{told} No pair of an earlier and a later head was named."
    if not both:
        return (
            f"{told} No pair composes beyond both random matrices and the other earlier heads "
            f"(p {CLEAR:g}, uncorrected)."
        )
    best = min(both, key=lambda r: (r["p_heads"], -r["excess"]))
    return (
        f"{told} {len(both)} of {len(result.pairs)} pairs and inputs compose beyond random "
        f"matrices and the other earlier heads (p {CLEAR:g} each, uncorrected); first "
        f"{best['sender']} into the {INPUTS[best['mode']]} of {best['receiver']}, "
        f"{best['score']:.3f} where random matrices reach {best['chance_high']:.3f}."
    )


def body(result: "WeightCircuits") -> Iterator[h.Part]:
    """The page without its title."""
    yield from h.head(answer(result), (*KINDS["weight-circuits"].caveats, *result.notes))
    yield from ("<h2>Figures</h2>", *h.figures(result.figure, CAPTIONS))
    yield from ("<h2>Heads</h2>", _table(result.to_frame("heads"), ["head", "kind"]))
    if result.pairs:
        names = ["sender", "receiver", "mode"]
        yield from ("<h2>Pairs</h2>", _table(result.to_frame("pairs"), names))
    yield from h.made_by(result.settings, result.provenance)


def draw(result: "WeightCircuits", kind: str) -> "go.Figure":
    """A figure by name.

    Raises:
        ResultError: another name, or nothing to draw.
    """
    import plotly.graph_objects as go

    frame = result.to_frame(kind)
    if frame.empty:
        raise ResultError(f"no {kind} were scored: name heads of two layers, or other --senders")
    frame = frame.head(MOST_ROWS)
    if kind == "heads":
        labels = [f"{r.head} {r.kind}" for r in frame.itertuples()]
        said = "copying and matching by weights alone"
    else:
        labels = [f"{r.sender} → {r.receiver} {INPUTS[str(r.mode)]}" for r in frame.itertuples()]
        said = "what earlier heads write, as later heads read it"
    rows = list(range(len(frame)))
    fig = go.Figure(band(
        rows, frame["chance_low"], frame["chance_high"], name="95 % of random matrices",
        customdata=[hover(n, f"random {between(*c)}") for n, c in zip(
            labels, frame[["chance_low", "chance_high"]].to_numpy(), strict=True)],
    ))  # fmt: skip
    for clear, name in ((True, "beyond chance"), (False, "within chance")):
        at = [i for i in rows if _is_clear(frame.iloc[i]) == clear]
        if at:
            mark = (
                VERDICTS["supported"] if clear else ROLES["random"]._replace(symbol="circle-open")
            )
            fig.add_trace(points(
                frame["score"].iloc[at], at, mark, name=name,
                customdata=[hover(labels[i], *_words(frame.iloc[i])) for i in at],
            ))  # fmt: skip
    labelled_rows(fig, labels)
    fig.update_xaxes(title="score")
    fig.update_layout(height=190 + 24 * len(frame))
    shown = f"{len(frame)} highest above random" if len(frame) == MOST_ROWS else "all"
    set_title(fig, result, said, f"{shown}; p {CLEAR:g}, uncorrected")  # type: ignore[arg-type]
    return fig


def _is_clear(row: Any) -> bool:
    """Beyond random matrices, and for pairs beyond the other earlier heads too."""
    return bool(row["p_random"] <= CLEAR and row.get("p_heads", 0.0) <= CLEAR)


def _words(row: Any) -> list[str]:
    words = [f"{row['score']:.3f}; random {row['chance']:.3f}", f"p {p_words(row['p_random'])}"]
    if "p_heads" in row:
        words.append(f"{row['p_heads']:.1%} of {row['n_earlier']} earlier heads reach it")
    return words


def _table(frame: "pd.DataFrame", names: list[str]) -> str:
    more = ["p_heads", "n_earlier"] if "p_heads" in frame else []
    columns = [*names, "score", "random", "95 % of random", "p, random",
               *("p, other heads", "earlier heads")[: len(more)]]  # fmt: skip
    return h.table(columns, [
        [*(str(r[n]) for n in names), h.Numeral(f"{r['score']:.3f}"),
         h.Numeral(f"{r['chance']:.3f}"), f"{r['chance_low']:.3f} to {r['chance_high']:.3f}",
         h.Numeral(p_words(r["p_random"])),
         *(h.Numeral(p_words(r["p_heads"]) if n == "p_heads" else r[n]) for n in more)]
        for _, r in frame.iterrows()
    ])  # fmt: skip
