"""Tables of the README, rendered from code and from committed results: no figure is typed by hand.

`python -m apps.readme` writes them into README.md, between `<!-- begin NAME -->` and
`<!-- end NAME -->`; a test holds the README against them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps import bench_backends_view, plan_error
from apps.console import markdown_table
from apps.measurements import MEASUREMENTS
from circuits.ablations import ABLATIONS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "apps" / "results"


def render(text: str) -> str:
    """The README with every block filled anew."""
    for name, block in BLOCKS.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{block()}\n{end}{rest.split(end)[1]}"
    return text


def ablations() -> str:
    """What each ablation puts in the place of what, and who used it."""
    rows = [[f"`{a.name}`", a.formula, a.acts_on, a.used_by] for a in ABLATIONS.values()]
    return markdown_table(["name", "formula", "acts on", "used by"], rows)


def measurements() -> str:
    """What can be measured, by which command, beside what, after whom."""
    rows = [[m.what, f"`{m.command}`", m.beside, m.source] for m in MEASUREMENTS]
    return markdown_table(["measurement", "command", "beside it", "source"], rows)


def capabilities() -> str:
    """Which backend can what."""
    from interp.backends.capabilities import NOTES, capability_table

    columns, rows = capability_table()
    notes = "; ".join(f"{mark} {words}" for mark, words in NOTES.items())
    return f"{markdown_table(list(columns), [list(row) for row in rows])}\n\n{notes}."


def bench_explore() -> str:
    """Size and times of the explorer's page."""
    found = _result("bench_explore_cpu")
    whole = found["whole_patterns"]["as_uint8_mb"] / 1e6
    return (
        f"`{found['command']}`: a made-up run of {found['layers']} x {found['heads']} heads and "
        f"{found['tokens']:,} tokens, random weights, ships as one page of "
        f"{found['page_mb']:.1f} MB (its patterns in 8 bits: {whole:.1f} TB), opens in "
        f"{found['opened_ms'] / 1000:.1f} s and answers a click on a head in "
        f"{found['click_ms']:.0f} ms (slowest {found['slowest_click_ms']:.0f}); "
        f"{found['browser']}, {found['machine']}, {found['created'][:10]}."
    )


def validation() -> str:
    """The committed validation of the bundled model."""
    found = _result("validate_cpu")
    rows = []
    for finding in found["findings"]:
        e = finding["effect"]
        run = "put back" if e["direction"] == "denoising" else e["ablation"]
        word = "sufficient" if e["direction"] == "denoising" else "necessary"
        rows.append([
            f"{run} ({word})", f"{e['baseline']:.2f}", f"{e['treated']:.2f}",
            f"{e['control']:.2f} ({e['control_low']:.2f} to {e['control_high']:.2f})",
            f"{e['effect']:+.2f} ({e['low']:+.2f} to {e['high']:+.2f})", f"{e['p_holm']:.4f}",
            finding["verdict"],
        ])  # fmt: skip
    columns = ["ablation (claim)", "before", "after", "random sets (95 %)",
               "effect (95 % interval)", "p, Holm", "verdict"]  # fmt: skip
    e = found["findings"][0]["effect"]
    words = (
        f"{found['model']}, the top {len(found['heads'])} of its default scan "
        f"({', '.join(found['heads'])}); log-probability of the answer, nats; {e['n_trials']} "
        f"questions, a needle each, that the scan did not use; {e['n_draws']} matched random sets. "
        f"`{found['command']}`, {found['machine']}, {found['created'][:10]}."
    )
    return f"{markdown_table(columns, rows)}\n\n{words}"


def calibration() -> str:
    """The committed calibration."""
    return str(_result("calibration")["markdown"]).rstrip()


def bench() -> str:
    """The committed bench of control draws."""
    b = _result("bench_validate_cpu")
    return (
        f"`{b['command']}`: {b['ablations']} ablations of {b['heads in each']} heads at "
        f"{b['tokens of context']} tokens take 1/{b['ratio']:g} of the time of one full forward "
        f"for each, the prefill included (1/{b['ratio after the prefill']:g} without it); largest "
        f"difference in log-prob {b['largest difference in log-prob, nats']:.0e} nats. "
        f"{b['machine']}, {b['provenance']['created'][:10]}."
    )


def binding() -> str:
    """The committed measurements of binding, a table a run."""
    found = [_result(name) for name in ("binding_music_cpu", "binding_others_cpu")]
    tests = [t for run in found for t in run["hypotheses"]]
    words = []
    for place, told in PLACES.items():
        own = [t["verdict"] for t in tests if t["place"] == place]
        held = ", ".join(
            f"{own.count(v)} {v}" for v in ("supported", "unsupported", "inconclusive")
        )
        words.append(f"{told}: {held}")
    tables = "\n\n".join(run["markdown"].rstrip() for run in found)
    told = "What causal attention predicts, by study that names a mechanism"
    return f"{tables}\n\n{told}: {'; '.join(words)}."


PLACES = {
    "first": "target first in its group, reflexive above lexical",
    "middle": "in the middle, both followed",
    "last": "last, lexical above reflexive",
}


def binding_calibration() -> str:
    """The committed calibration of the binding detector."""
    return str(_result("binding_calibration")["markdown"]).rstrip()


def bench_bind() -> str:
    """The committed bench of patched evaluations."""
    b = _result("bench_bind_cpu")
    return (
        f"**Speed.** `{b['command']}`: an evaluation takes 1/{b['ratio']:g} of the time of the "
        f"published loop (two full forwards of {b['tokens of a prompt']} tokens), contexts "
        f"included; a sweep over {b['layers of the sweep']} layers 1/{b['ratio of the sweep']:g}. "
        f"{b['evaluations a second']:g} evaluations a second, {b['share of the floor']:.1%} of "
        f"what one token above the layer would allow; largest difference of a logit "
        f"{b['largest difference of a logit']:.0e}. {b['machine']}, "
        f"{b['provenance']['created'][:10]}."
    )


def graph() -> str:
    """The committed token-feature graph: headline beside its nulls, verdicts, and use."""
    found, used = _result("graph_cpu"), _result("effects_cpu")
    text = found["text"]
    words = (
        f"{found['model']}; {text['positions']:,} positions of {text['documents']} texts, "
        f"{found['function_tokens']} function tokens; `{found['command']}`, {found['machine']}, "
        f"{found['created'][:10]}."
    )
    classes = [
        f"{row['class']} {row['occurrences_ratio']:.2f} ({row['verdict']})"
        for row in found["tables"][list(found["tables"])[0]]["verdict"]
    ]
    key = next(iter(found["tables"]))
    judged = f"Degree at equal occurrences against other tokens, {key}: {'; '.join(classes)}."
    return f"{found['markdown']}\n\n{words}\n\n{judged}\n\n{_used(used)}"


def _used(found: dict[str, Any]) -> str:
    pairs = [
        f"{c['distance']}: {c['function']:+.2f} at function, {c['content']:+.2f} at content, "
        f"difference {c['difference']:+.2f} ({c['low']:+.2f} to {c['high']:+.2f})"
        for c in found["contrasts"]
    ]
    return (
        f"Taking the features of one token away ({found['station']}, {found['contrasts'][0]['n']} "
        "predictions of content tokens) changes the next token's log-probability, in nats beyond "
        f"random directions of the same length: {'; '.join(pairs)}. "
        f"`{found['settings']['command']}`."
    )


def graph_calibration() -> str:
    """The committed calibration of the graph's verdicts."""
    return str(_result("graph_calibration")["markdown"]).rstrip()


def losses() -> str:
    """The committed losses of the four transition groups, last checkpoint."""
    found = _result("loss_groups_cpu")
    return f"{found['answer']} `{found['settings']['command']}`, {found['created'][:10]}."


def bench_graph() -> str:
    """The committed bench of counting."""
    b = _result("bench_graph_cpu")
    return (
        f"`{b['command']}`: {b['tokens a second, end to end']:,.0f} tokens a second end to end; "
        f"encoding adds {b['encoding, share of that']:.1%} to the bare forward and counting "
        f"{b['counting, share of that']:.1%} ({b['counting, nanoseconds an activation']:.0f} ns an "
        f"activation; dense adding {b['dense counting, nanoseconds an activation']:.0f} ns, the "
        f"same counts). {b['machine']}, {b['provenance']['created'][:10]}."
    )


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found


BLOCKS: dict[str, Callable[[], str]] = {
    "measurements": measurements,
    "bench_explore": bench_explore,
    "bench_backends": lambda: bench_backends_view.markdown(_result("bench_backends_cpu")),
    "bench_plan": plan_error.bench_plan,
    "capabilities": capabilities,
    "ablations": ablations,
    "validation": validation,
    "calibration": calibration,
    "bench": bench,
    "binding": binding,
    "binding_calibration": binding_calibration,
    "bench_bind": bench_bind,
    "graph": graph,
    "graph_calibration": graph_calibration,
    "losses": losses,
    "bench_graph": bench_graph,
}


if __name__ == "__main__":
    README.write_text(render(README.read_text("utf-8")), "utf-8")
