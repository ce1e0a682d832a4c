"""The pages of `trace`: of one prompt, and of a text; and what the command prints of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import html_parts as h
from apps.console import Lines, print_table, say
from apps.reactivation_figures import FIGURES
from apps.result_kinds import KINDS

if TYPE_CHECKING:
    import pandas as pd

    from circuits.prompt_trace import PromptTrace
    from circuits.reactivation_result import ReactivationResult

PAGE, GRAPHML, JSON_FOLDER = "page.html", "trace.graphml", "graph_data"
MOST_ROWS = 40
TABLES = {
    "index": "Do features of content tokens come back at function tokens more than expected?",
    "classes": "By class of the token at which they come back, over shuffled labels",
    "distances": "By distance to the nearest source",
    "contrasts": "Mean |gradient x activation|: differences in the same prediction and distance",
    "attribution": "Mean |gradient x activation| of a feature",
    "agreement": "Attribution beside exact ablation",
    "overlap": "Heads that bring re-activated features, beside the retrieval heads",
    "heads": "Heads by the share of the activation that they bring",
    "links": "Most frequent re-activations",
}


def corpus_page(result: "ReactivationResult") -> str:
    """The whole page of a text, offline."""
    return h.document(title(result), body(result))


def title(result: "ReactivationResult") -> str:
    """What the page of a text is about."""
    return f"Re-activation in {result.provenance.model}"


def answer(result: "ReactivationResult") -> str:
    """What the run over a text says."""
    return h.sentence(result.answer)


def prompt_page(trace: "PromptTrace") -> str:
    """The whole page of a prompt, offline."""
    about = trace.about
    parts = [
        *h.head(prompt_answer(trace), KINDS["reactivation"].caveats[1:]),
        *h.figures(lambda _: trace.figure(), {"prompt": "Features of content tokens, and where "
                                              "they are active again"}),
        "<h2>Re-activated features, by attribution to the next token</h2>",
        _table(trace.to_frame(most=MOST_ROWS)), "<h2>About</h2>", h.pairs(about),
    ]  # fmt: skip
    return h.document(f"Trace of a prompt in {about['model']}", parts)


def prompt_answer(trace: "PromptTrace") -> str:
    """How many features came back, where, and what they do, in two sentences."""
    p, about = trace.positions, trace.about
    own = p[p["function"]]
    size = trace.features["attribution"].abs()
    again = trace.features["kind"] == "re-activated"
    share = size[again].sum() / max(float(size.sum()), 1e-300)
    said = f"rank agreement with exact ablation {trace.agreement['rho']:.2f}"
    return (
        f"{int(p['reactivated'].sum())} of {int(p['active'].sum())} active features were active at "
        f"a content token before, {int(own['reactivated'].sum())} of them at function tokens. They "
        f"hold {share:.0%} of all |attribution| to '{about['target_text']}' "
        f"(p = {about['p']:.3f}); {said} over {int(trace.agreement['n'])}."
    )


def finish_prompt(
    trace: "PromptTrace", folder: Path, lines: Lines, *, slug: str, as_json: bool
) -> None:
    """Write graph JSON, GraphML and the page of a prompt; print its table."""
    import networkx as nx

    from circuits.graph_json import check_graph_json, write_graph_json

    page = h.write_whole(folder / PAGE, prompt_page(trace))
    graph = write_graph_json(trace, folder / JSON_FOLDER, slug=slug,
                             model_name=trace.about["model"])  # fmt: skip
    nodes = check_graph_json(graph)
    nx.write_graphml(trace.to_networkx(), folder / GRAPHML)
    if as_json:
        say(json.dumps({
            "folder": str(folder), "about": trace.about, "answer": prompt_answer(trace),
            "agreement": _plain(trace.agreement), "graph": str(graph), "nodes": nodes,
            "rows": _rows(trace.to_frame()),
        }))  # fmt: skip
    elif not lines.quiet:
        names = ["position", "text", "feature", "activation", "nearest", "attribution", "exact",
                 "head", "weight", "share"]  # fmt: skip
        _show("re-activated features", trace.to_frame(most=20)[names])
        say(prompt_answer(trace))
    lines.say(f"page: {page.resolve()}\ngraph JSON: {graph.resolve()}")


def finish_corpus(
    result: "ReactivationResult", folder: Path, lines: Lines, *, as_json: bool
) -> None:
    """Save a corpus run, write its page and graph, print its tables."""
    import networkx as nx

    result.save(folder)
    page = h.write_whole(folder / PAGE, corpus_page(result))
    nx.write_graphml(result.to_networkx(), folder / "reactivation.graphml")
    if as_json:
        say(json.dumps({
            "folder": str(folder), "model": result.provenance.model, "station": result.station,
            "answer": result.answer, "text": result.text, "settings": result.settings,
            "seconds": result.provenance.seconds, "created": result.provenance.created,
            "tables": {n: _rows(f.head(MOST_ROWS)) for n, f in result.tables.items()},
        }))  # fmt: skip
    elif not lines.quiet:
        for name in ("index", "classes", "contrasts", "agreement", "overlap"):
            if name in result.tables:
                _show(TABLES[name], result.tables[name])
        say(result.answer)
    lines.say(f"run folder: {folder.resolve()}\npage: {page.resolve()}")


def body(result: "ReactivationResult") -> Iterator[h.Part]:
    """The page of a text without its title."""
    yield from h.head(answer(result), KINDS["reactivation"].caveats)
    text = result.text
    yield (
        f"<p>Text: {text['positions']:,} positions in {text['documents']:,} documents; "
        f"{text['active']:,} active features of {h.safe(result.station)}, {text['dense']} dense "
        f"features left out; {text['predictions']} predictions attributed.</p>"
    )
    captions = {kind: caption for kind, (_, caption) in FIGURES.items()}
    yield from h.figures(result.figure, captions)
    for name, title in TABLES.items():
        if name in result.tables:
            yield f"<h2>{h.safe(title)}</h2>{_table(result.tables[name].head(MOST_ROWS))}"
    yield from h.made_by(result.settings, result.provenance)


def _table(frame: "pd.DataFrame") -> str:
    columns = [str(c).replace("_", " ") for c in frame]
    return h.table(columns, [[_cell(v) for v in row] for row in frame.itertuples(index=False)])


def _cell(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return h.Numeral(f"{value:,}")
    if isinstance(value, float):
        return h.Numeral("-" if value != value else f"{value:.3g}")  # noqa: PLR0124
    return value


def _show(title: str, frame: "pd.DataFrame") -> None:
    columns = [str(c).replace("_", " ") for c in frame]
    rows = [[str(_cell(v)) for v in row] for row in frame.itertuples(index=False)]
    print_table(title, columns, rows)


def _rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    # pandas writes NaN, which JSON has no word for, as null
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    return rows


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    return {k: None if v != v else v for k, v in values.items()}  # noqa: PLR0124
