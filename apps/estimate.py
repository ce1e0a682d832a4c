"""What an experiment will cost, before it runs: figures and scaling of a price, for a person."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from apps.console import print_mapping, print_table, say

if TYPE_CHECKING:
    from circuits.cost import Sizes
    from circuits.cost_machine import Machine
    from circuits.plan import ScanPlan
    from circuits.pricing import Price

WORKERS = (1, 2, 4, 8)
FACTORS = (1, 2, 4)
MIB = 2**20
Found = TypeVar("Found")

Make = Callable[["Sizes", Mapping[str, int]], "Price"]
"""The price of an experiment for a model of other sizes, with parts of it multiplied: `length`,
`questions`."""


def with_peak(ready: Callable[[], Found]) -> tuple[Found, float]:
    """What planning gives, and the MiB that it takes at its peak: texts are cut into tokens.

    They are not given back: what follows comes on top.
    """
    import torch

    from apps.peak_memory import MB, peak_mb

    found: list[Found] = []
    peak = peak_mb(lambda: found.append(ready()), torch.device("cpu"), repeats=1)
    return found[0], max(0.0, (peak or 0.0) * MB / MIB)


def figures(
    price: "Price", sizes: "Sizes", machine: "Machine", *, alone: float, workers: int,
    planning: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Counts, memory, time and its parts; plain values.

    Args:
        alone: seconds of loading the model and of planning, as they were just now.
        planning: MiB that planning takes.
    """
    from circuits.cost import TERMS
    from circuits.pricing import by_phase, count, shares

    most, least = count(price, sizes), count(price, sizes, sure=True)
    need = price.memory(sizes)
    low, high = (
        price.spread(sizes, machine, sure=sure, alone=alone).seconds(workers)
        for sure in (True, False)
    )
    return {
        "of": price.of,
        **price.counts,
        "forwards": [round(least["forwards"]), round(most["forwards"])],
        "tokens": [round(least["tokens"]), round(most["tokens"])],
        "TFLOP": [round(c["operations"] / 1e12, 2) for c in (least, most)],
        "weights MiB": round(need.weights / MIB),
        "keys and values MiB": round(need.cached / MIB),
        "working memory MiB": round(need.working / MIB),
        "planning MiB": round(planning),
        "workers": workers,
        "seconds": [round(low, 1), round(high, 1)],
        "loading and planning, seconds": round(alone, 1),
        "seconds by phase": _rounded(by_phase(price, sizes, machine)),
        "share of time": {
            TERMS[k]: round(v, 3) for k, v in shares(price, sizes, machine).items() if v >= 0.005
        },
        "machine": f"{machine.about}, timed in {machine.took:.0f} s",
        "notes": list(price.notes),
    }


def scaling(
    make: Make, sizes: "Sizes", machine: "Machine", *, parts: tuple[str, ...], alone: float
) -> list[dict[str, Any]]:
    """How operations, memory and time grow, each with one thing multiplied.

    Args:
        parts: what `make` can multiply.
    """
    from circuits.pricing import count, repeated

    base = make(sizes, {})
    rows = [("contexts", f, sizes, repeated(base, f)) for f in FACTORS if base.n_units]
    for part in parts:
        rows += [(part, f, sizes, make(sizes, {part: f})) for f in FACTORS]
    for name, change in _MODELS.items():
        for f in FACTORS[1:]:
            other = change(sizes, f)
            rows.append((name, f, other, make(other, {})))
    found = []
    for name, f, size, price in rows:
        seconds = price.spread(size, machine, alone=alone)
        found.append({
            "what": price.unit if name == "contexts" else name, "times": f,
            "TFLOP": round(count(price, size)["operations"] / 1e12, 2),
            "memory MiB": round(sum(vars(price.memory(size)).values()) / MIB),
            **{f"on {n}, s": round(seconds.seconds(n), 1) for n in WORKERS},
        })  # fmt: skip
    return found


def _wider(sizes: "Sizes", f: int) -> "Sizes":
    """Widths times f with heads of the same width: weights grow with its square."""
    return replace(
        sizes, n_heads=sizes.n_heads * f, n_kv_heads=sizes.n_kv_heads * f,
        d_model=sizes.d_model * f, d_wide=sizes.d_wide * f,
        layer_weights=sizes.layer_weights * f * f,
        all_weights=round(
            sizes.all_weights + sizes.n_layers * sizes.layer_weights * (f * f - 1)
            + sizes.d_model * sizes.d_vocab * (f - 1)
        ),
    )  # fmt: skip


def _deeper(sizes: "Sizes", f: int) -> "Sizes":
    more = sizes.n_layers * (f - 1)
    return replace(
        sizes, n_layers=sizes.n_layers * f, masked_layers=sizes.masked_layers * f,
        all_weights=round(sizes.all_weights + more * sizes.layer_weights),
    )  # fmt: skip


_MODELS: dict[str, Callable[["Sizes", int], "Sizes"]] = {
    "width and heads of the model": _wider,
    "layers of the model": _deeper,
}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {k: round(v, 1) for k, v in values.items()}


def show(found: Mapping[str, Any]) -> None:
    """Print figures, then how they scale, then how far such predictions were off."""
    later = ("seconds by phase", "share of time", "notes", "scaling", "measured error", "warnings")
    flat = {k: _told(v, k) for k, v in found.items() if k not in later and v != []}
    print_mapping(flat)
    for title in ("seconds by phase", "share of time"):
        rows = [[k, f"{v:.0%}" if title.startswith("share") else f"{v:g}"]
                for k, v in found[title].items()]  # fmt: skip
        say("")
        print_table(f"{title}, at most", ["", ""], rows)
    rows = found["scaling"]
    if rows:
        say("")
        cells = [[str(v) for v in row.values()] for row in rows]
        print_table(
            "if it were more (at most; seconds on 1, 2, 4, 8 workers of this speed)",
            list(rows[0]),
            cells,
        )
    say("")
    for note in found["notes"]:
        say(f"- {note}")
    say(f"- {found['measured error']}")


RANGES = ("forwards", "tokens", "TFLOP", "seconds")
"""Figures that are given as least and most."""


def _told(value: Any, name: str) -> str:
    """A range where its ends differ, otherwise values with commas between."""
    if name in RANGES:
        low, high = (f"{v:,}" for v in value)
        return low if low == high else f"{low} to {high}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def scan_with(plan: "ScanPlan") -> Make:
    """Prices of a scan, with its contexts longer or more needles asked for in each."""

    def make(sizes: "Sizes", times: Mapping[str, int]) -> "Price":
        from circuits.pricing import price_scan

        f, many = times.get("length", 1), times.get("needles", 1)
        contexts = tuple(replace(c, tokens=c.tokens * f) for c in plan.contexts)
        trials = tuple(
            tuple(replace(t, length=t.length * f) for t in group) * many for group in plan.trials
        )
        return price_scan(sizes, replace(plan, contexts=contexts, trials=trials))

    return make
