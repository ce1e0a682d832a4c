"""The end of a patching run or of a traced circuit: save, write the page, print the main rows."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import html_parts as h
from apps.console import Lines, print_table, say
from apps.result_kinds import KINDS

if TYPE_CHECKING:
    import pandas as pd

    from circuits.circuit_result import CircuitResult
    from circuits.patch_result import PatchResult

PAGE = "page.html"
N_ROWS = 20
PATCH_CAPTIONS = {
    "sites": "Where the answer is carried. Noising puts the twin prompt's activation into the "
    "original run, denoising the original's into the twin's. A patch at one position class.",
    "screen": "One backward pass estimates the effect of exchanging every head's output.",
    "confirmed": "The heads that the screen ranks first, and others drawn at random, exchanged "
    "exactly. Points on the line: the screen is right.",
}
CIRCUIT_CAPTIONS = {
    "graph": "What feeds the outlined heads: an arrow means that ablating the sender, as only this "
    "input of the receiver sees it, changes the answer.",
    "edges": "Every measured edge. Grey: what edges of random senders do.",
    "faithfulness": "The heads of a circuit work, all others give what they give in a prompt with "
    "another value. Solid: the circuit alone; dotted: everything but the circuit.",
}


def finish_patch(result: "PatchResult", folder: Path, lines: Lines, *, as_json: bool) -> None:
    """Save, draw and print a patching run."""
    result.save(folder)
    frame = _largest(result.to_frame("share"))
    page = h.write_whole(folder / PAGE, patch_page(result))
    if as_json:
        say(json.dumps({"folder": str(folder), "agreement": result.agreement,
                        "largest": _records(frame)}))  # fmt: skip
    else:
        columns = ["direction", "site", "layer", "head", "class", "share closed", "95 % interval"]
        print_table(f"Patches of {result.provenance.model}", columns, [_patched(r) for r in
                    frame.to_dict("records")])  # fmt: skip
        for name, rho in result.agreement.items():
            told = "undefined" if rho is None else f"{rho:.3f}"
            lines.say(f"rank agreement of the screen with exact patches, {name}: {told}")
    lines.say(f"run folder: {folder.resolve()}\npage: {page.resolve()}")


def finish_circuit(result: "CircuitResult", folder: Path, lines: Lines, *, as_json: bool) -> None:
    """Save, draw and print a circuit."""
    result.save(folder)
    page = h.write_whole(folder / PAGE, circuit_page(result))
    kept = result.edges[result.edges["stays"]].head(N_ROWS)
    if as_json:
        say(json.dumps({"folder": str(folder), "heads": result.settings["heads"],
                        "edges": _records(kept), "areas": result.areas,
                        "notes": list(result.notes)}))  # fmt: skip
    else:
        columns = ["from", "to", "through", "effect, logits", "95 % interval", "random, 95 %"]
        rows = [_edge(r) for r in kept.to_dict("records")]
        print_table(f"What feeds {', '.join(result.settings['heads'])}", columns, rows)
        for name, area in result.areas.items():
            lines.say(f"circuits by {name}: CPR {area['CPR']:.3f}, CMD {area['CMD']:.3f}")
        for note in result.notes:
            lines.say(f"note: {note}")
    lines.say(f"run folder: {folder.resolve()}\npage: {page.resolve()}")


def patch_page(result: "PatchResult") -> str:
    """The page of a patching run."""
    return h.document(patch_title(result), patch_body(result))


def patch_title(result: "PatchResult") -> str:
    """What the page of a patching run is about."""
    return f"Patching {result.provenance.model}"


def patch_body(result: "PatchResult") -> Iterator[h.Part]:
    """The page of a patching run without its title."""
    rows = [_patched(r) for r in _largest(result.to_frame("share")).to_dict("records")]
    columns = ["direction", "site", "layer", "head", "positions", "share closed", "95 % interval"]
    yield from h.head(patch_answer(result), KINDS["patch"].caveats)
    yield from ("<h2>Figures</h2>", *h.figures(result.figure, PATCH_CAPTIONS))
    yield from ("<h2>The largest patches</h2>", h.table(columns, rows))
    yield from h.made_by(result.settings, result.provenance)


def patch_answer(result: "PatchResult") -> str:
    """In plain words: how far up the value's own place carries the answer, and then which."""
    n = result.baselines["needle"].nunique()
    frame = result.to_frame("share").query("direction == 'denoising' and site == 'resid_pre'")
    words = [f"{result.provenance.model}, {n} needles:"]
    if frame.empty:
        words.append("no residual was patched.")
    else:
        share = frame.pivot_table(index="layer", columns="class", values="effect")
        here = share["value"] if "value" in share else share.iloc[:, 0]
        carried = [int(i) for i in share.index if here[i] >= HALF]
        there = [int(i) for i in share.index if share["answer"][i] >= HALF]
        words.append(
            f"putting the original's residual back at the value's tokens brings back half of the "
            f"logit difference or more up to layer {max(carried)}" if carried
            else "the value's tokens alone bring back less than half in every layer"
        )  # fmt: skip
        words.append(
            f"and at the rows that produce the answer from layer {min(there)} on "
            f"(layers patched: {', '.join(map(str, share.index))})." if there
            else "and so do the answer's rows."
        )  # fmt: skip
    known = [f"{k} {v:.2f}" for k, v in result.agreement.items() if v is not None]
    if known:
        words.append(f"Rank agreement of the head screen with exact patches: {', '.join(known)}.")
    return " ".join(words)


HALF = 0.5
"""Share of the logit difference that is called carrying it; a word for a reader, no test."""


def circuit_page(result: "CircuitResult") -> str:
    """The page of a circuit."""
    return h.document(circuit_title(result), circuit_body(result))


def circuit_title(result: "CircuitResult") -> str:
    """What the page of a circuit is about."""
    return f"Circuit of {', '.join(result.settings['heads'])} in {result.provenance.model}"


def circuit_body(result: "CircuitResult") -> Iterator[h.Part]:
    """The page of a circuit without its title."""
    rows = [_edge(r) for r in result.edges.head(2 * N_ROWS).to_dict("records")]
    columns = ["from", "to", "through", "effect, logits", "95 % interval", "random, 95 %"]
    yield from h.head(circuit_answer(result), (*result.notes, *KINDS["circuit"].caveats))
    yield from ("<h2>Figures</h2>", *h.figures(result.figure, CIRCUIT_CAPTIONS))
    yield from ("<h2>Edges</h2>", h.table(columns, rows))
    yield from ("<h2>Components</h2>", _components(result))
    yield from h.made_by(result.settings, result.provenance)


def circuit_answer(result: "CircuitResult") -> str:
    """The circuit in plain words."""
    kept = result.edges[result.edges["stays"]]
    heads = ", ".join(result.settings["heads"])
    n = result.node_rows["needle"].nunique()
    if kept.empty:
        first = f"No edge into {heads} passed the minimality test over {n} needles."
    else:
        named = [f"{r['sender']} through the {_WORDS[r['channel']]} of {r['receiver']} "
                 f"({r['effect']:+.2f})" for r in kept.head(3).to_dict("records")]  # fmt: skip
        first = (f"Over {n} needles {len(kept)} edges into {heads} pass the minimality test; the "
                 f"largest: {'; '.join(named)} logits.")  # fmt: skip
    tenth = result.faithfulness.query("share <= 0.1 and ranking == 'attribution'")
    if tenth.empty:
        return first
    best, drawn = tenth.iloc[-1], result.faithfulness.query("ranking == 'random'")
    drawn = drawn[drawn["size"] == best["size"]]
    beside = f", {drawn['faithfulness'].iloc[0]:.0%} at random" if len(drawn) else ""
    return (f"{first} The {best['size']} heads ranked first by attribution carry "
            f"{best['faithfulness']:.0%} of the logit difference{beside}.")  # fmt: skip


_WORDS = {"q": "query", "k": "key", "v": "value"}


def _components(result: "CircuitResult") -> str:
    columns = ["component", "total", "95 % interval", "direct", "95 % interval"]
    rows = [
        [r["node"], r["effect"], _between(r, ""), r["effect_direct"], _between(r, "_direct")]
        for r in result.nodes.to_dict("records")
    ]
    return h.table(columns, rows)


def _largest(frame: "pd.DataFrame") -> "pd.DataFrame":
    return frame.sort_values("effect", key=abs, ascending=False, kind="stable").head(N_ROWS)


def _patched(row: Mapping[Any, Any]) -> list[str]:
    head = "" if row["head"] < 0 else f"H{row['head']}"
    return [row["direction"], row["site"], str(row["layer"]), head, row["class"],
            f"{row['effect']:.2f}", _between(row, "")]  # fmt: skip


def _edge(row: Mapping[Any, Any]) -> list[str]:
    chance = "–" if math.isinf(row["threshold"]) else f"{row['threshold']:.2f}"
    return [row["sender"], row["receiver"], _WORDS[row["channel"]], f"{row['effect']:+.2f}",
            _between(row, ""), chance]  # fmt: skip


def _between(row: Mapping[Any, Any], ending: str) -> str:
    return f"{row['low' + ending]:.2f} to {row['high' + ending]:.2f}"


def _records(frame: "pd.DataFrame") -> Any:
    return json.loads(frame.to_json(orient="records"))
