"""`mnemoscope bench plan`: predictions of `plan` beside what really happens.

Every run has a process of its own, in which memory is measured, the machine is timed and the price
is made just before the run. What no plan can know, the questions that the model answers, is put
into the price afterwards and said (`given`); the range that was told beforehand stands beside it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from statistics import median
from typing import TYPE_CHECKING, Any

from interp.errors import UnknownNameError

if TYPE_CHECKING:
    from circuits.cost import Sizes
    from circuits.pricing import Price
    from interp.backends.hf import HFModel

MIB = 2**20
HEADS = "L18H6,L23H2,L18H7,L17H3,L23H7"
"""Heads that lead scans of smollm2-135m; of other models any five will do for their cost."""


@dataclass(frozen=True)
class Tried:
    """A run made ready: what it costs, and how it is run.

    Attributes:
        price: for the model's sizes, before the run.
        run: makes a result.
        known: the price once the result is there, and what it took from that, in words.
        planning: seconds of planning in the run; as long as making this ready took, if None.
    """

    price: "Callable[[Sizes], Price]"
    run: Callable[[], Any]
    known: "Callable[[Sizes, Any], tuple[Price, str]] | None" = None
    planning: float | None = None


@dataclass(frozen=True)
class Case:
    """A named run of an experiment."""

    name: str
    of: str
    ready: "Callable[[HFModel], Tried]"


def run(
    model: str,
    only: Sequence[str] = (),
    *,
    device: str | None,
    dtype: str,
    threads: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """All cases, each in its own process; plain values.

    Raises:
        UnknownNameError: no case of that name.
    """
    from apps.peak_memory import in_own_process

    for name in only:
        if name not in CASES:
            raise UnknownNameError("run", name, CASES)
    rows = []
    for name in only or CASES:
        say(f"  {name}")
        row = in_own_process(one_case, model, name, device, dtype, threads)
        rows.append(row or {"run": name, "failed": "the process was killed"})
    good = [r for r in rows if "failed" not in r]
    return {
        "command": f"mnemoscope bench plan {model}",
        "model": good[0]["model"] if good else model,
        "machine": good[0]["machine"] if good else "",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "time off": _summary([r["time off"] for r in good]),
        "memory off": _summary([r["memory off"] for r in good if r["memory off"] is not None]),
        "runs": good,
        "left out": [r for r in rows if "failed" in r],
        "versions": good[0]["versions"] if good else {},
    }


def _summary(off: Sequence[float]) -> dict[str, float] | None:
    sizes = [abs(x) for x in off]
    return {"median": median(sizes), "worst": max(sizes)} if sizes else None


def one_case(
    model: str, name: str, device: str | None, dtype: str, threads: int | None
) -> dict[str, Any]:
    """Predict and run one case in this process."""
    from apps.estimate import with_peak
    from apps.options import load, machine
    from apps.peak_memory import peak_mb
    from circuits.cost import sizes_of
    from circuits.cost_machine import measure_machine, seconds
    from interp.errors import MnemoscopeError
    from interp.store import provenance

    # libraries that a run imports when it first needs them are no memory of the run
    for library in ("pandas", "scipy.optimize", "scipy.sparse", "scipy.stats"):
        import_module(library)
    case = CASES[name]
    loaded = load(model, device, dtype, None, None, threads)
    about = {"run": name, "of": case.of, "model": loaded.source.name, "machine": machine(loaded)}
    sizes = sizes_of(loaded)
    held: list[Any] = []
    try:
        start = time.perf_counter()
        tried, planned = with_peak(lambda: case.ready(loaded))
        planning = time.perf_counter() - start
        planning = planning if tried.planning is None else tried.planning
        timed = measure_machine(loaded)
        before = tried.price(sizes)
        took: list[float] = []
        peak = peak_mb(
            lambda: took.append(seconds(lambda: held.append(tried.run()))), loaded.device
        )
    except MnemoscopeError as error:
        return about | {"failed": str(error)}
    told = [
        before.spread(sizes, timed, sure=sure, alone=planning).seconds(1) for sure in (True, False)
    ]
    price, given = (before, "") if tried.known is None else tried.known(sizes, held[0])
    predicted = price.spread(sizes, timed, alone=planning).seconds(1)
    need = price.memory(sizes).beyond_weights / MIB + planned
    mib = None if peak is None else peak * 1e6 / MIB
    return about | {
        "predicted seconds": predicted, "seconds": took[0], "time off": predicted / took[0] - 1,
        "told before, seconds": told, "given": given,
        "planning, seconds": planning, "planning MiB": planned,
        "predicted MiB": need, "MiB": mib, "memory off": None if mib is None else need / mib - 1,
        "speeds": dict(timed.speed), "timing the machine, seconds": timed.took,
        "versions": provenance(loaded, seconds=0).versions,
    }  # fmt: skip


# -- the runs ---------------------------------------------------------------------------------


def _scan(**settings: Any) -> "Callable[[HFModel], Tried]":
    def ready(model: "HFModel") -> Tried:
        from circuits.plan import ScanSettings, make_plan
        from circuits.pricing import price_scan
        from circuits.retrieval import scan

        asked = ScanSettings(stop_early=False, **settings)
        plan = make_plan(model, asked)

        def known(sizes: "Sizes", result: Any) -> "tuple[Price, str]":
            said = [t for t, f in zip(result.trials["trial"], result.trials["forced"], strict=True)
                    if not f]  # fmt: skip
            given = f"{len(said)} of {len(result.trials)} answers are not forced right"
            return price_scan(sizes, plan, generated=said), given

        return Tried(
            lambda sizes: price_scan(sizes, plan), lambda: scan(model, asked),
            known if asked.generate else None,
        )  # fmt: skip

    return ready


def _validate(model: "HFModel") -> Tried:
    from circuits.pricing_validate import price_validate
    from circuits.validation import validate
    from circuits.validation_plan import ValidateSettings, make_validation

    settings = ValidateSettings(
        top=5, ablations=("zero", "uniform"), n_draws=59, n_needles=4, length=256, curve=(1,),
        n_curve=5,
    )  # fmt: skip
    spec = model.spec
    own = spec.n_layers == 30 and spec.n_heads == 9
    heads = (
        HEADS if own else ",".join(map(str, spec.heads()[:: max(1, len(spec.heads()) // 5)][:5]))
    )
    plan = make_validation(model, heads, settings)

    def known(sizes: "Sizes", result: Any) -> "tuple[Price, str]":
        kept = [bool(k) for k in result.cases["kept"]]
        given = f"{sum(kept)} of {len(kept)} questions are answered"
        return price_validate(sizes, plan, answered=kept), given

    return Tried(
        lambda sizes: price_validate(sizes, plan), lambda: validate(model, heads, settings), known
    )


def _bind(model: "HFModel") -> Tried:
    from circuits.binding_plan import BindSettings
    from circuits.binding_run import binding
    from circuits.pricing_bind import price_bind

    # the floor is 0: what is measured costs the same whether or not the model can do the task
    settings = BindSettings(
        n=(5,), targets=("musician",), style="plain", layer=2 * model.spec.n_layers // 3, n_sets=2,
        donors=2, n_controls=2, controls=("absent_answer", "agree_all"), n_preflight=2, floor=0.0,
        bootstrap=2,
    )  # fmt: skip
    return Tried(
        lambda sizes: price_bind(model, sizes, settings), lambda: binding(model, settings),
        lambda sizes, _: (price_bind(model, sizes, settings), "the floor is 0, all is measured"),
    )  # fmt: skip


def _graph(model: "HFModel") -> Tried:
    from circuits.cost_dictionary import measure_dictionary
    from circuits.graph_plan import GraphSettings, divide
    from circuits.graph_run import function_tokens
    from circuits.pricing_graph import price_graph, text_size
    from probes.haystack import load_text

    settings = GraphSettings(
        layers=(model.spec.n_layers // 2,), tokens=6000, train_tokens=8000, d_dict=2048, steps=60,
        batch=1024, blocks=4, draws=20,
    )  # fmt: skip
    pieces = range(0, 10**6, 2500)
    texts = [t for d in load_text(None) for i in pieces if len(t := d.text[i : i + 2500]) == 2500]
    start = time.perf_counter()
    text = divide(model.tokenizer, texts, settings, n_vocab=model.spec.d_vocab)
    size = text_size(text, settings, seconds=time.perf_counter() - start)
    times = measure_dictionary(model.spec.d_model, settings, device=model.device)
    return Tried(
        lambda sizes: price_graph(model, sizes, settings, size, times=times),
        lambda: function_tokens(model, texts, settings), planning=size.seconds,
    )  # fmt: skip


_ALL = (
    Case("scan of 2 contexts of 1024 tokens", "scan", _scan(
        lengths=(512, 1024), depths=(0.0, 0.5, 1.0), n_haystacks=2, attention=4, generate=False)),
    Case("scan of a context of 4096 tokens", "scan", _scan(
        lengths=(1024, 4096), depths=(0.0, 0.5, 1.0), n_haystacks=1, attention=2, generate=False)),
    Case("scan of 2 contexts of 256 tokens with generated text", "scan", _scan(
        lengths=(256,), depths=(0.0, 0.5, 1.0), n_haystacks=2, attention=0)),
    Case("validate 62 sets of 5 heads on 4 questions", "validate", _validate),
    Case("bind 5 groups in 4 entity sets", "bind", _bind),
    Case("graph of 14000 positions with 60 steps of training", "graph", _graph),
)  # fmt: skip
CASES: Mapping[str, Case] = {c.name: c for c in _ALL}


def show(found: Mapping[str, Any]) -> None:
    """Predicted beside measured."""
    from apps.console import print_table, say

    names = ("predicted seconds", "seconds", "time off", "predicted MiB", "MiB", "memory off")
    rows = [[r["run"], *(_cell(k, r[k]) for k in names), r["given"]] for r in found["runs"]]
    print_table("predicted and measured", ["", *names, "given"], rows)
    for name in ("time off", "memory off"):
        off = found[name]
        if off is not None:
            say(f"{name}: {off['median']:.0%} (median), {off['worst']:.0%} (worst)")
    for r in found["left out"]:
        say(f"left out: {r['run']}: {r['failed']}")


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "not known"
    return f"{value:+.0%}" if name.endswith("off") else f"{value:.1f}"
