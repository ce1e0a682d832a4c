"""The page of features taken away: what it costs, beside random directions and other features."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from apps import html_parts as h
from apps.result_kinds import KINDS
from apps.validation_parts import VERDICTS, between, p_words, signed

if TYPE_CHECKING:
    from circuits.effects_result import FeatureEffects

CAPTIONS = {
    "effects": "What taking features away costs, by class of the token and by its distance from "
    "the prediction. A bar counts as theirs only where it lies clear of its diamond: a random "
    "direction of the same length."
}


def page(result: "FeatureEffects") -> str:
    """The page's HTML."""
    return h.document(title(result), body(result))


def title(result: "FeatureEffects") -> str:
    """What the page is about."""
    return f"Features taken away in {result.provenance.model}, by class of token"


def answer(result: "FeatureEffects") -> str:
    """Function against content tokens at each distance, and how many effects are real."""
    named = [
        f"{f['name']} ({f['ablation']})" for f in result.findings if f["verdict"] == "supported"
    ]
    told = (
        f"Of {len(result.findings)} effects, each beside its control, {len(named)} are supported"
        f"{': ' if named else ''}{'; '.join(named)}."
    )
    pairs = [
        f"{c['distance']}: {signed(c['function'])} at function, {signed(c['content'])} at content "
        f"tokens, difference {signed(c['difference'])} ({signed(c['low'])} to {signed(c['high'])})"
        for c in result.contrasts
    ]
    if not pairs:
        return f"No distance has predictions of two documents with tokens of both classes. {told}"
    return (
        f"Taking the features of one token away ({result.station}, "
        f"{result.rows['trial'].nunique()} predictions) changes the next token's log-probability, "
        f"in nats beyond random directions of the same length: {'; '.join(pairs)}. {told}"
    )


def body(result: "FeatureEffects") -> Iterator[h.Part]:
    """The page without its title."""
    yield from h.head(answer(result), KINDS["feature-effects"].caveats)
    yield from ("<h2>Figure</h2>", *h.figures(lambda _: result.figure(), CAPTIONS))
    yield from ("<h2>Function against content token, equally far</h2>", _contrasts(result))
    yield from ("<h2>Every place beside its controls</h2>", _findings(result))
    yield from h.made_by(result.settings, result.provenance)


def _contrasts(result: "FeatureEffects") -> str:
    columns = ["distance", "at function", "at content", "difference", "95 % interval", "n",
               "tokens apart, function", "tokens apart, content"]  # fmt: skip
    return h.table(columns, [
        [c["distance"], *(h.Numeral(signed(c[k])) for k in ("function", "content", "difference")),
         between(c["low"], c["high"]), h.Numeral(c["n"]), c["tokens apart, function"],
         c["tokens apart, content"]]
        for c in result.contrasts
    ])  # fmt: skip


def _findings(result: "FeatureEffects") -> str:
    columns = ["features of", "beside", "verdict", "before", "after", "control", "excess",
               "95 % interval", "p (Holm)", "n", "reason"]  # fmt: skip
    return h.table(columns, [_row(f) for f in result.findings])


def _row(f: dict[str, Any]) -> list[Any]:
    mark = VERDICTS[f["verdict"]]
    return [
        f["name"].removeprefix("features at a "), f["ablation"].partition(", ")[2],
        f"{mark.sign}\u00a0{f['verdict']}",
        f["baseline"], f["treated"], f["control"], h.Numeral(signed(f["excess"])),
        between(f["excess_low"], f["excess_high"]), h.Numeral(p_words(f["p_holm"])),
        f"{f['n_trials']}/{f['n_clusters']}", f["reason"],
    ]  # fmt: skip
