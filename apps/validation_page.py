"""One HTML file that holds a whole validation: answer, figures, findings, controls, provenance.

It opens offline, with plotly.js inside (`apps.html_parts`). The words necessary and sufficient are
written only where the direction that they need was run: taking away, or putting back.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import html_parts as parts
from apps import validation_parts as own
from apps.result_kinds import KINDS
from apps.validation_details import ANSWERS, per_token
from apps.validation_figures import draw
from circuits.ablations import ABLATIONS, SCOPES
from circuits.effects import Finding
from circuits.validation_result import DENOISE
from interp.errors import ResultError

if TYPE_CHECKING:
    from circuits.validation_result import ValidationResult

N_NEGATIVE = 20
CAPTIONS = {
    "effects": "What changing the heads does, a row for each way to change them. An effect counts "
    "as theirs only where it lies clear of the grey band: matched random sets, as many heads from "
    "the same layers. Hover for the claim and its numbers.",
    "agreement": "Whether the effect depends on what ablating means. Rows that differ much say "
    "that no single ablation should decide.",
    "curve": "How the metric falls as more heads of the ranking are ablated. Random sets of each "
    "size stay near the dashed line where the ranking picks out something special.",
    "specificity": "Whether it is retrieval that suffers: the same ablation on other kinds of "
    "text, beside the answers. In brackets: the log-probability per token before. Short copying "
    "is near to retrieval, so heads that retrieve by induction serve it too.",
    "alone": "Each head of the model ablated by itself. Blue: the answer loses. Red: it gains, "
    "these heads are negative.",
    "repair": "Later heads may make good what one head loses. Where the direct effect lies further "
    "from 0 than the total one, they repair it; with the final norm frozen, its rescaling no "
    "longer counts as repair.",
    "score_effect": "Whether the score that ranked the heads foretells the harm that each does "
    "when it is gone. The permutations stay within layers, so that layers alone do not count.",
}
PUTTING = "putting {} back into a prompt that states another value"
PUT_BACK = (
    "the head's own z, from the prompt that states the answer, at the same position of the twin "
    "prompt, which states another value"
)


def write_page(result: "ValidationResult", path: str | Path) -> Path:
    """Write the page of a validation, whole or not at all, and return where it is.

    Raises:
        ResultError: the file cannot be written.
    """
    return parts.write_whole(path, page(result))


def page(result: "ValidationResult") -> str:
    """The page's HTML."""
    return parts.document(title(result), body(result))


def title(result: "ValidationResult") -> str:
    """What the page is about."""
    return f"Validation of {own.candidates(result)} of {result.provenance.model}"


def body(result: "ValidationResult") -> Iterator[parts.Part]:
    """The page without its title."""
    notes = (*result.notes, *result.missing().values(), *KINDS["validation"].caveats)
    yield from parts.head(answer(result), notes)
    yield from ("<h2>Findings</h2>", _findings(result))
    yield from ("<h2>Figures</h2>", *parts.figures(lambda kind: draw(result, kind), CAPTIONS))
    yield from ("<h2>Answers lost and gained</h2>", *_pass_fail(result))
    yield from ("<h2>Negative heads</h2>", *_negative(result))
    yield from ("<h2>All controls</h2>", *_controls(result))
    yield from ("<h2>What was done to the heads</h2>", *_ablations(result))
    yield from parts.made_by(result.settings, result.provenance)


# -- the answer -------------------------------------------------------------------------------


def answer(result: "ValidationResult") -> str:
    """What was asked, what came out, and what else the ablation does, in plain words."""
    return f"{asked(result)} {brief(result)}"


def brief(result: "ValidationResult") -> str:
    """What came out, and what else the ablation does."""
    if not result.findings:
        why = "; ".join(result.missing().values()) or "nothing was run"
        return f"No effect could be measured: {parts.sentence(why)}"
    back = [f for f in result.findings if own.run_name(f) == DENOISE]
    away = [f for f in result.findings if f not in back]
    clauses = [
        _outcome(result, found, deed)
        for deed, found in (("taking {} away", away), (PUTTING, back))
        if found
    ]
    return " ".join([parts.sentence("; ".join(clauses)), *_other_text(result)])


def asked(result: "ValidationResult") -> str:
    """The question, and what it was tested on."""
    n = max((f.effect.n_draws for f in result.findings), default=0)
    beside = f", beside {n} random sets of as many heads from the same layers" if n else ""
    return (
        f"Does retrieval in {result.provenance.model} rest on {own.candidates(result)} "
        f"({result.settings['source']})? This was tested on {own.questions(result)} that the "
        f"unablated model answers{beside}."
    )


def _outcome(result: "ValidationResult", found: list[Finding], deed: str) -> str:
    """How much a deed changes the metric, beside random sets, and whether the claim holds."""
    words, unit = own.metric_unit(result)
    changes = _range(f.effect.effect for f in found)
    random = _range(f.effect.control - f.effect.baseline for f in found)
    them, they = ("it", "it is") if len(result.heads) == 1 else ("them", "they are")
    claim, verdicts = f"{they} {own.claim_word(found[0])}", {f.verdict for f in found}
    if len(verdicts) == 1:
        agree = f" (all {len(found)} ablations agree)" if len(found) > 1 else ""
        told = f"that {claim} is {found[0].verdict}{agree}"
    else:
        each = ", ".join(f"{own.run_name(f)} {f.verdict}" for f in found)
        told = f"whether {claim} depends on the ablation ({each})"
    return (
        f"{deed.format(them)} changes the {words} by {changes} {unit} (random sets: {random}), "
        f"and {told}"
    )


def _range(values: Iterable[float]) -> str:
    found = list(values)
    return " to ".join(dict.fromkeys(own.signed(v) for v in (min(found), max(found))))


def _other_text(result: "ValidationResult") -> list[str]:
    """What the same ablation does to plain text, beside the answers."""
    if result.specificity.empty:
        return []
    table = per_token(result)
    means = table[table["role"] == "top"].groupby("kind")["change"].mean()
    if "plain text" not in means:
        return []
    beside = f"; for the answers it is {own.signed(means[ANSWERS])}" if ANSWERS in means else ""
    how = result.specificity["ablation"].iloc[0]
    return [
        f"On plain text, {how} ablation changes the log-probability of a token by "
        f"{own.signed(means['plain text'])} nats on average{beside}."
    ]


# -- tables -----------------------------------------------------------------------------------


def _findings(result: "ValidationResult") -> str:
    signs = {verdict: f"{m.sign}\u00a0{m.words}" for verdict, m in own.VERDICTS.items()}
    rows = [[own.run_name(f), signs[f.verdict], f.claim, f.reason] for f in result.findings]
    return parts.table(["run", "verdict", "claim", "reason"], rows)


def _pass_fail(result: "ValidationResult") -> Iterable[str]:
    """Whether greedy decoding still gives the answer: rates and McNemar's exact test."""
    rows = [
        [own.run_words(r["run"]), _rate(r, "before"), _rate(r, "after"), str(r["lost"]),
         str(r["gained"]), _p(r["p"]), str(r["n"])]
        for r in result.pass_fail().to_dict("records")
    ]  # fmt: skip
    yield "<p>Greedy decoding gives just the answer; 95 % Clopper-Pearson intervals.</p>"
    yield parts.table(["run", "before", "after", "lost", "gained", "p (McNemar)", "n"], rows)


def _rate(row: Mapping[Any, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f} ({own.between(low, high)})"


def _negative(result: "ValidationResult") -> Iterable[str]:
    """Heads without which the answer gains, apart from those that it loses by."""
    try:
        frame = result.alone_frame()
    except ResultError as error:
        yield parts.note(f"No negative heads are known: {error}")
        return
    heads, unit = own.negative_heads(frame), own.metric_unit(result)[1]
    yield f"<p>{parts.safe(own.negative_words(result, frame))}</p>"
    if len(heads) > N_NEGATIVE:
        yield f"<p>The {N_NEGATIVE} with the largest gains:</p>"
    chosen = {str(h) for h in result.heads}
    columns = ["head", f"gain, {unit}", "95 % interval", "p", "p (Holm)", "candidate", "score"]
    rows = [
        [r["name"], r["effect"], own.between(r["low"], r["high"]), _p(r["p"]), _p(r["p_holm"]),
         "yes" if r["name"] in chosen else "", r.get("score", float("nan"))]
        for r in heads.head(N_NEGATIVE).to_dict("records")
    ]  # fmt: skip
    if rows:
        yield parts.table(columns, rows)


def _controls(result: "ValidationResult") -> Iterable[str]:
    table = result.controls()
    if table.empty:
        yield parts.note("No effect could be measured.")
        return
    yield (
        "<p>Every kind of set in every run, p not corrected. Excess: the effect beyond the mean "
        "effect of the random sets. d_z: the effect in standard deviations over needles. n: "
        "questions/needles/random sets.</p>"
    )
    columns = ["run", "heads", "metric", "before", "after", "random sets after", "95 % of them",
               "effect", "95 % interval", "excess", "95 % interval", "p", "d_z", "n"]  # fmt: skip
    yield parts.table(columns, [_control_row(r) for r in table.to_dict("records")])


def _control_row(r: Mapping[Any, Any]) -> list[Any]:
    size = float("nan") if r["size"] is None else r["size"]
    effect, excess = (parts.Numeral(own.signed(r[k])) for k in ("effect", "excess"))
    n = f"{r['n_trials']}/{r['n_clusters']}/{r['n_draws']}"
    return [
        r["run"], own.ROLES[r["role"]].words, r["of"], r["baseline"], r["treated"], r["control"],
        own.between(r["control_low"], r["control_high"]), effect,
        own.between(r["low"], r["high"]), excess,
        own.between(r["excess_low"], r["excess_high"]), _p(r["p"]), size, n,
    ]  # fmt: skip


def _ablations(result: "ValidationResult") -> Iterable[str]:
    """The exact meaning of each ablation, and where it acted."""
    scope = result.settings["scope"]
    yield f"<p>Scope {parts.safe(scope)}: {parts.safe(SCOPES.get(scope, 'not known'))}.</p>"
    known = [ABLATIONS[n] for n in result.settings["ablations"] if n in ABLATIONS]
    rows = [[a.name, a.formula, a.acts_on, a.used_by] for a in known]
    if DENOISE in set(result.sets["ablation"]):
        rows.append([DENOISE, PUT_BACK, "head output", "denoising (2404.15255)"])
    yield parts.table(["run", "what stands in its place", "acts on", "used by"], rows)


def _p(value: float) -> parts.Numeral:
    return parts.Numeral(own.p_words(value))
