"""One HTML file that holds a whole binding run: verdicts first, then the evidence of each study.

It opens offline (`apps.html_parts`). Studies beyond the first few are folded, and their
figures are drawn when they are opened: a page of thirty studies opens as fast as one of three. A
section whose part of the conclusion is absent is left out, one that holds a reason says it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from apps import binding_extras as extras
from apps import html_parts as h
from apps.binding_figures import FIGURES
from apps.binding_fit_figures import behaviour_words, number, part_of, part_or_reason, study_name
from apps.result_kinds import KINDS
from apps.validation_parts import VERDICTS, between, p_words, signed
from circuits.binding_labels import POINTERS
from circuits.mixture import MixtureFit
from interp.errors import ResultError

if TYPE_CHECKING:
    from circuits.binding_result import BindingResult, StudyResult

OPEN = 3
"""Studies that are unfolded."""
CAPTIONS = {
    "targets": "A word that comes first in its group can be read by those behind it, the last one "
    "cannot: so a first target should be found by itself (reflexive), a last one by the words "
    "before it (lexical).",
    "competence": "Where the model cannot do the task there is no binding to explain. The mixture, "
    "fitted to patched runs, foretells the probability of the right answer where nothing is "
    "patched.",
    "positions": "What the model answered when the last token's vector came from a question about "
    "this group of another context. A pointer to positions that is vague between the ends of the "
    "list makes the shape of a U.",
    "sweep": "Where the vector begins to decide the answer, and from which layer on it holds the "
    "answer itself: there the donor's word is said even if the recipient does not hold it.",
    "pointers": "A mechanism counts as followed only where its group lies clear of the grey band: "
    "groups at the same distance that no mechanism predicts.",
    "controls": "Designs whose outcome is known if the pointers are what they seem. One layer "
    "later a copied answer may pass for a reflexive pointer.",
    "width": "How vague the positional pointer is. All three conventions of the kernel mean the "
    "same by sigma.",
    "weights": "On one scale, in logits, whatever the kernel's convention.",
    "variants": "What each term of the mixture is worth, beside the most that any model can reach "
    "with so few cases a cell: the true one included.",
    "cases": "An average of prompts shows a mixture even if every prompt follows one mechanism. "
    "The entropies tell whether single prompts hold it.",
}
COLUMNS = ["task", "target", "n", "accuracy", "layer", "positional", "lexical", "reflexive",
           "JSS / ceiling", "named"]  # fmt: skip

JSS = (
    "JSS: Jensen-Shannon similarity of the mixture to the answers, and what the mixture itself "
    "would reach on as many cases"
)


class Section(NamedTuple):
    """A part of a study: figures, then tables; shown where conclusion or mixture have its key."""

    title: str
    key: str
    figures: tuple[str, ...] = ()
    tables: Callable[["StudyResult"], Iterable[str]] = lambda _: ()


def page(result: "BindingResult") -> str:
    """The page's HTML."""
    return h.document(title(result), body(result))


def title(result: "BindingResult") -> str:
    """What the page is about."""
    return f"Binding in {result.provenance.model}"


def body(result: "BindingResult") -> Iterator[h.Part]:
    """The page without its title."""
    studies = list(result.studies.values())
    yield from (*h.head(answer(result), KINDS["binding"].caveats), _verdicts(studies))
    yield from ("<h2>Studies</h2>", h.table(COLUMNS, overview(result)), f"<p>{JSS}.</p>")
    yield from _hypotheses(result)
    yield "<h2>Study by study</h2>"
    for i, study in enumerate(studies, start=1):
        yield from _study(result, study, i)
    yield from extras.across(result)
    yield from h.made_by(result.settings, result.provenance)


def answer(result: "BindingResult") -> str:
    """The question, and what came out."""
    return f"How does {result.provenance.model} retrieve bound entities? {brief(result)}"


def brief(result: "BindingResult") -> str:
    """How many studies name a mechanism, and which ones; the verdict of a single study."""
    verdicts = [s.conclusion["verdict"] for s in result.studies.values()]
    if len(verdicts) == 1:
        return str(verdicts[0]["sentence"])
    times = {name: sum(name in v["named"] for v in verdicts) for name in POINTERS}
    told = ", ".join(f"{name} in {k}" for name, k in times.items() if k)
    some = sum(bool(v["named"]) for v in verdicts)
    said = f"{some} of {len(verdicts)} studies name a mechanism{': ' + told if told else ''}."
    if some:
        return said
    first = next(iter(result.studies.values()))
    return f"{said} The first, {study_name(first)}: {verdicts[0]['sentence']}"


def overview(result: "BindingResult") -> list[list[str]]:
    """A row a study, written out; see `COLUMNS`."""
    rows = zip(result.studies.values(), result.to_frame().to_dict("records"), strict=True)
    return [_overview_row(s, row) for s, row in rows]


def _overview_row(s: "StudyResult", row: dict[Any, Any]) -> list[str]:
    ceiling, _ = part_or_reason(s, "ceiling")
    most = f" / {ceiling['matched'][0]:.2f}" if ceiling else ""
    filler = f" + {s.filler} filler" if s.filler else ""
    return [
        s.task, f"{s.target} by {'+'.join(s.asked)}", f"{s.n}{filler}",
        h.Numeral(_two(row["accuracy"])), h.Numeral("–" if s.layer is None else s.layer),
        *(h.Numeral(_two(row[name])) for name in POINTERS),
        h.Numeral(_two(row["jss"]) + most), row["named"] or "none",
    ]  # fmt: skip


def _verdicts(studies: list["StudyResult"]) -> str:
    """A list with links; none for a single study, whose verdict is the answer."""
    items = (
        f'<li><a href="#study-{i}">{h.safe(study_name(s))}</a>: {h.safe(s.verdict)}</li>'
        for i, s in enumerate(studies, start=1)
    )
    return f"<ul>{''.join(items)}</ul>" if len(studies) > 1 else ""


# -- figures and sections ---------------------------------------------------------------------


def _study(result: "BindingResult", study: "StudyResult", i: int) -> Iterator[h.Part]:
    """All sections of a study; the figures of later ones are drawn when they are unfolded."""
    folded = i > OPEN
    yield f'<details id="study-{i}"{"" if folded else " open"}>'
    yield f"<summary>{h.safe(study_name(study))}</summary>"
    yield from h.head(study.verdict, study.conclusion["verdict"]["notes"])
    mixture = study.conclusion.get("mixture") or {}
    held = {k for found in (study.conclusion, mixture) for k, v in found.items() if v is not None}
    for section in [s for s in SECTIONS if s.key in held]:
        yield f"<h3>{section.title}</h3>"
        for kind in section.figures:
            yield _figure(result, study, kind, f"figure-{kind}-{i}", folded=folded)
        yield from section.tables(study)
    if "reason" in mixture:
        yield h.note(h.sentence(f"no mixture was fitted: {mixture['reason']}"))
    yield "</details>"


def _figure(
    result: "BindingResult", study: "StudyResult", kind: str, name: str, *, folded: bool = False
) -> h.Part:
    """A figure with its caption, or why there is none."""
    try:
        figure = FIGURES[kind][0](result, study)
    except ResultError as error:
        return h.note(h.sentence(f"{kind} {error}"))
    return h.Picture(name, figure, CAPTIONS[kind], folded)


def _hypotheses(result: "BindingResult") -> Iterator[h.Part]:
    """What causal attention foretells, across studies."""
    if not result.hypotheses:
        return
    yield "<h2>Targets first, in the middle, last</h2>"
    yield _figure(result, next(iter(result.studies.values())), "targets", "figure-targets")
    columns = ["study", "target", "predicted", "reflexive", "lexical", "difference",
               "95 % interval", "n", "verdict"]  # fmt: skip
    yield h.table(columns, [
        [study_name(result.studies[t["study"]]), t["place"], t["predicted"], t["reflexive"],
         t["lexical"], h.Numeral(signed(t["difference"])), between(t["low"], t["high"]),
         h.Numeral(t["n"]), _signed_verdict(t["verdict"])]
        for t in result.hypotheses
    ])  # fmt: skip


def _prompting(study: "StudyResult") -> Iterator[str]:
    about = study.about
    shown = {k: about[k] for k in ("style", "question", "complete", "form") if k in about}
    yield h.pairs(shown | {"words left out, not one token": about.get("dropped", ())})


def _checks(study: "StudyResult") -> Iterator[str]:
    """What the shares rest on."""
    found = study.conclusion
    cells, words = found["coverage"], found["words"]
    yield h.pairs({
        "evaluations": cells["evaluations"],
        "cells measured": f"{cells['cells']} of {cells['of']}, "
        f"{cells['apart']} of {cells['of_apart']} in which the three differ",
        "probability on the candidates": _two(found["mass"]),
        "change by a question's own vector, logits": f"{found['self_change']:.2g}",
        "spread over words, of probability": f"{words['spread']:.3f}, p {p_words(words['p'])}",
    })  # fmt: skip


def _findings(study: "StudyResult") -> Iterator[str]:
    columns = ["mechanism", "verdict", "unpatched", "patched", "fake pointers", "excess",
               "95 % interval", "p (Holm)", "n", "reason"]  # fmt: skip
    rows = []
    for f in study.conclusion["findings"]:
        e = f["effect"]
        rows.append([
            e["name"], _signed_verdict(f["verdict"]), e["baseline"], e["treated"], e["control"],
            h.Numeral(signed(e["excess"])), between(e["excess_low"], e["excess_high"]),
            h.Numeral(p_words(e["p_holm"])), f"{e['n_trials']}/{e['n_clusters']}", f["reason"],
        ])  # fmt: skip
    if rows:
        yield h.table(columns, rows)


def _controls(study: "StudyResult") -> Iterator[str]:
    words = {True: "holds", False: "fails", None: "–"}
    columns = ["design", "layer", "expected", "share", "95 % interval", "n", "outcome"]
    rows = [
        [c["design"], h.Numeral(c["layer"]), c["expected"], float(c["hit"]),
         between(number(c["low"]), number(c["high"])), h.Numeral(c["n"]), words[c["passed"]]]
        for c in study.conclusion["controls"]
    ]  # fmt: skip
    if rows:
        yield h.table(columns, rows)


# -- the mixture ------------------------------------------------------------------------------


def _fit(study: "StudyResult") -> Iterator[str]:
    """Parameters in each kernel's convention, variants, and whether the additive form will do."""
    fit, most = part_of(study, "fit"), _ceilings(study)
    kernels, _ = part_or_reason(study, "kernels")
    columns = ["kernel", "fitted by", "w_pos", "alpha", "beta", "gamma", "sigma, groups",
               "similarity", "ceiling, matched", "ceiling, one-hot", "converged"]  # fmt: skip
    fits = [f for f in (kernels or {fit["kernel"]: fit}).values() if "w_pos" in f]
    yield h.table(columns, [_kernel_row(f, most) for f in fits])
    yield from _variants(study, most)
    whole = [
        f"{e['name']} {e['value']:.2f} ({between(number(e['low']), number(e['high']))})"
        for e in (part_or_reason(study, "intervals")[0] or {"estimates": ()})["estimates"]
        if e["index"] is None
    ]
    test, _ = part_or_reason(study, "interaction")
    told = [
        f"95 % intervals, gates on average: {', '.join(whole)}" if whole else "",
        f"gates that grow near i_P: {test['word']}, {test['reason']}" if test else "",
        *(part_or_reason(study, k)[1] for k in ("kernels", "ceiling", "interaction", "held_out")),
    ]
    yield from (f"<p>{h.safe(h.sentence(words))}</p>" for words in told if words)


def _kernel_row(fit: dict[str, Any], most: list[Any]) -> list[Any]:
    sigma = MixtureFit(**fit).sigma()
    return [
        fit["kernel"], fit["loss"], *(number(fit[k]) for k in ("w_pos", "alpha", "beta", "gamma")),
        between(sigma.min(), sigma.max()), float(fit["jss"]), *most,
        "yes" if fit["converged"] else "no",
    ]  # fmt: skip


def _ceilings(study: "StudyResult") -> list[Any]:
    found, _ = part_or_reason(study, "ceiling")
    if found is None:
        return ["–", "–"]
    return [
        f"{m:.2f} ({between(low, high)})" for m, low, high in (found["matched"], found["one_hot"])
    ]


def _variants(study: "StudyResult", most: list[Any]) -> Iterator[str]:
    table, _ = part_or_reason(study, "variants")
    if table is None:  # the figure has said why
        return
    kernel = h.safe(part_of(study, "fit")["kernel"])
    yield f"<p>Similarity of every variant, kernel {kernel}:</p>"
    columns = ["variant", "cells fitted", "cells held out", "positions held out",
               "ceiling, matched", "ceiling, one-hot", "converged"]  # fmt: skip
    yield h.table(columns, [
        [row["variant"], *(number(row[k]) for k in ("jss", "jss_cells", "jss_positions")), *most,
         "yes" if row["converged"] else "no"]
        for row in table
    ])  # fmt: skip
    held, _ = part_or_reason(study, "held_out")
    scored = [f"{part['n_scored']} of {part['n_cells']} cells held out by {what}"
              for what, part in (held or {}).items() if "n_scored" in part]  # fmt: skip
    if scored:
        yield f"<p>Scored: {h.safe('; '.join(scored))}.</p>"


def _behaviour(study: "StudyResult") -> Iterator[str]:
    told, reason = part_or_reason(study, "behaviour")
    if told is None:
        yield h.note(h.sentence(reason))
        return
    yield f"<p>{h.safe(h.sentence(behaviour_words(told)))}</p>"
    groups = range(1, len(told["measured"]) + 1)
    rows = zip(groups, told["measured"], told["predicted"], strict=True)
    columns = ["group asked for", "probability, measured", "predicted by the mixture"]
    yield h.table(columns, [[str(g), number(m), number(p)] for g, m, p in rows])


def _signed_verdict(verdict: str) -> str:
    return f"{VERDICTS[verdict].sign}\u00a0{verdict}"


def _two(value: Any) -> str:
    return "–" if value is None or value != value else f"{value:.2f}"


SECTIONS = (
    Section("Can the model do the task?", "competence", ("competence",), _prompting),
    Section("Which pointer is followed, by position", "shares", ("positions",), _checks),
    Section("Layer by layer", "layer", ("sweep",)),
    Section("Pointers beside fake pointers", "findings", ("pointers",), _findings),
    Section("Controls", "controls", ("controls",), _controls),
    Section("The mixture", "fit", ("width", "weights", "variants"), _fit),
    Section("One prompt or many?", "case_level", ("cases",)),
    Section("Does the mixture foretell unpatched answers?", "behaviour", (), _behaviour),
    Section("Which heads write and read the pointer", "heads", (), extras.heads),
    Section("The older measurements", "classics", (), extras.classics),
)
"""In the order of the page; one more measurement is one more row."""
