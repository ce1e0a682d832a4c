"""`mnemoscope plan` and `mnemoscope bench plan`: what an experiment costs, before it runs.

Registered by `apps.cli`. The price comes from the plan that the experiment itself would follow, the
speed of the machine from a few short forwards.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.console import Lines, say
from apps.estimate import Make, figures, scaling, scan_with, show, with_peak
from apps.options import (
    AsJson,
    Attention,
    Corpus,
    CueWords,
    Depths,
    Device,
    DeviceMap,
    Dtype,
    Early,
    Generate,
    Haystack,
    Haystacks,
    Kinds,
    Languages,
    Lengths,
    Mode,
    Model,
    Needles,
    Revision,
    Style,
    Threads,
    interruptible,
    load,
    names,
    numbers,
)
from interp.errors import PromptError, UnknownNameError

if TYPE_CHECKING:
    from circuits.cost import Sizes
    from circuits.pricing import Price
    from interp.backends.hf import HFModel


def register(app: typer.Typer, bench: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(interruptible(plan))
    bench.command("plan")(interruptible(bench_plan))


def plan(
    model: Model,
    of: Annotated[str, typer.Option(help="scan, validate, bind or graph.")] = "scan",
    workers: Annotated[int, typer.Option(help="GPUs or machines, a model each.")] = 1,
    lengths: Lengths = "",
    depths: Depths = "0,0.25,0.5,0.75,1",
    haystacks: Haystacks = 6,
    haystack: Haystack = None,
    needles: Needles = "",
    kinds: Kinds = "",
    languages: Languages = "en",
    mode: Mode = "shared",
    style: Style = "auto",
    cue_words: CueWords = 3,
    early: Early = True,
    generate: Generate = True,
    attention: Attention = 20,
    heads: Annotated[
        str, typer.Option(help="validate: a scan's run folder, a head file, or L5H3,L7H1.")
    ] = "",
    top: Annotated[int, typer.Option(help="validate: heads; evenly spread if none named.")] = 0,
    ablations: Annotated[str, typer.Option(help="validate: names with commas.")] = "",
    scope: Annotated[str, typer.Option(help="validate: suffix, decode, everywhere.")] = "suffix",
    draws: Annotated[int, typer.Option(help="validate: matched random sets.")] = 120,
    questions: Annotated[int, typer.Option(help="validate: test questions.")] = 15,
    tasks: Annotated[str, typer.Option(help="bind: names or files.")] = "music_performance",
    targets: Annotated[str, typer.Option(help="bind: roles asked for. Default: all.")] = "",
    n: Annotated[str, typer.Option(help="bind: numbers of groups, as 4,8.")] = "8",
    sets: Annotated[int, typer.Option(help="bind: entity sets.")] = 8,
    layer: Annotated[str, typer.Option(help="bind: a layer; graph: layers, as 7,15.")] = "",
    corpus: Corpus = [],  # noqa: B006
    tokens: Annotated[int, typer.Option(help="graph: positions; 0: all of --corpus.")] = 0,
    train_tokens: Annotated[int, typer.Option(help="graph: positions to train on.")] = 300_000,
    width: Annotated[int, typer.Option(help="graph: features of a dictionary.")] = 4096,
    steps: Annotated[int, typer.Option(help="graph: training steps.")] = 400,
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    device_map: DeviceMap = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Say what an experiment costs and how that scales: forwards, FLOPs, memory and time."""
    given = dict(locals())
    if of not in PLANNED:
        raise UnknownNameError("experiment to plan", of, PLANNED)
    if workers < 1:
        raise PromptError(f"--workers {workers}: nothing can run on so few; use 1 or more")
    started = time.perf_counter()
    loaded = load(model, device, dtype, revision, device_map, threads)
    (make, parts), held = with_peak(lambda: PLANNED[of](loaded, given))
    alone = time.perf_counter() - started
    Lines(quiet=as_json).say(f"model: {loaded.source.name} ({loaded.source.detail})")
    found = told(loaded, make, parts, workers=workers, alone=alone, planning=held)
    say(json.dumps(found)) if as_json else show(found)


def told(
    loaded: "HFModel", make: "Make", parts: tuple[str, ...], *, workers: int,
    alone: float = 0.0, planning: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Everything that `plan` says; see `apps.estimate.figures`."""
    from apps.plan_error import measured_error
    from circuits.cost import sizes_of
    from circuits.cost_machine import measure_machine

    sizes, machine = sizes_of(loaded), measure_machine(loaded)
    price = make(sizes, {})
    found = figures(price, sizes, machine, alone=alone, workers=workers, planning=planning)
    found["scaling"] = scaling(make, sizes, machine, parts=parts, alone=alone)
    found["measured error"] = measured_error(loaded.source.name, price.of)
    return found


# -- one for each experiment: its prices, and what of it can be multiplied ---------------------

Given = Mapping[str, Any]


def _scan(model: "HFModel", given: Given) -> "tuple[Make, tuple[str, ...]]":
    from circuits.plan import ScanSettings, make_plan

    for name, known in (("mode", ("shared", "single")), ("style", ("auto", "chat", "plain"))):
        if given[name] not in known:
            raise PromptError(f"--{name} is one of {', '.join(known)}, got {given[name]!r}")
    settings = ScanSettings(
        lengths=numbers(given["lengths"], int, "lengths"),
        depths=numbers(given["depths"], float, "depths"),
        n_haystacks=given["haystacks"], haystack=tuple(given["haystack"] or ()),
        needles=given["needles"], kinds=names(given["kinds"]),
        languages=() if given["languages"] == "all" else names(given["languages"]),
        mode=given["mode"], style=given["style"], cue_words=given["cue_words"],
        stop_early=given["early"], generate=given["generate"], attention=given["attention"],
    )  # fmt: skip
    return scan_with(make_plan(model, settings)), ("length", "needles")


def _validate(model: "HFModel", given: Given) -> "tuple[Make, tuple[str, ...]]":
    from circuits.pricing_validate import price_validate
    from circuits.validation_plan import ValidateSettings, make_validation

    lengths = numbers(given["lengths"], int, "lengths")
    if len(lengths) > 1:
        raise PromptError(f"a validation has one length, got --lengths {given['lengths']}")
    wanted: dict[str, Any] = {"ablations": names(given["ablations"])} if given["ablations"] else {}
    prompts = {
        "haystack": tuple(given["haystack"] or ()), "needles": given["needles"],
        "style": "" if given["style"] == "auto" else given["style"],
    }  # fmt: skip
    settings = ValidateSettings(
        top=given["top"], scope=given["scope"], n_draws=given["draws"],
        n_needles=given["questions"], length=lengths[0] if lengths else 0,
        prompts=tuple((k, v) for k, v in prompts.items() if v), **wanted,
    )  # fmt: skip
    heads = given["heads"] or _spread_heads(model, given["top"] or 10)
    whole = make_validation(model, heads, settings)

    def make(sizes: "Sizes", _: Mapping[str, int]) -> "Price":
        return price_validate(sizes, whole)

    return make, ()


def _spread_heads(model: "HFModel", n: int) -> str:
    """Heads evenly over all layers: what an unknown set costs, since low layers cost more."""
    pool = model.spec.heads()
    if not 1 <= n <= len(pool):
        raise PromptError(f"--top {n}: the model has {len(pool)} heads; use 1 to {len(pool)}")
    return ",".join(str(pool[i * len(pool) // n + len(pool) // (2 * n)]) for i in range(n))


def _bind(model: "HFModel", given: Given) -> "tuple[Make, tuple[str, ...]]":
    from circuits.binding_plan import BindSettings
    from circuits.pricing_bind import price_bind
    from probes.binding_tasks import task_names

    layers = numbers(given["layer"], int, "layer")
    settings = BindSettings(
        tasks=task_names() if given["tasks"] == "all" else names(given["tasks"]),
        targets=names(given["targets"]), n=numbers(given["n"], int, "n"),
        layer=layers[0] if layers else -1, n_sets=given["sets"],
    )  # fmt: skip
    if layers and not 0 <= layers[0] <= model.spec.n_layers:
        raise PromptError(f"layer {layers[0]}: the model has 0-{model.spec.n_layers}")

    def make(sizes: "Sizes", _: Mapping[str, int]) -> "Price":
        return price_bind(model, sizes, settings)

    make(_sizes(model), {})  # refused here, before anything is timed
    return make, ()


def _graph(model: "HFModel", given: Given) -> "tuple[Make, tuple[str, ...]]":
    from circuits.cost_dictionary import measure_dictionary
    from circuits.graph_plan import GraphSettings, check_settings, divide
    from circuits.pricing_graph import assumed_text, price_graph, text_size

    settings = GraphSettings(
        layers=numbers(given["layer"], int, "layer"), tokens=given["tokens"],
        train_tokens=given["train_tokens"], d_dict=given["width"], steps=given["steps"],
    )  # fmt: skip
    check_settings(settings)
    if given["corpus"]:
        start = time.perf_counter()
        text = divide(model.tokenizer, list(given["corpus"]), settings, n_vocab=model.spec.d_vocab)
        size = text_size(text, settings, seconds=time.perf_counter() - start)
    else:
        size = assumed_text(settings)
    times = measure_dictionary(model.spec.d_model, settings, device=model.device)

    def make(sizes: "Sizes", _: Mapping[str, int]) -> "Price":
        return price_graph(model, sizes, settings, size, times=times)

    make(_sizes(model), {})
    return make, ()


def _sizes(model: "HFModel") -> "Sizes":
    from circuits.cost import sizes_of

    return sizes_of(model)


PLANNED: dict[str, Callable[["HFModel", Given], "tuple[Make, tuple[str, ...]]"]] = {
    "scan": _scan, "validate": _validate, "bind": _bind, "graph": _graph,
}  # fmt: skip


def bench_plan(
    model: Model = "smollm2-135m",
    output: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
    cases: Annotated[str, typer.Option(help="Of the runs, by name. Default: all.")] = "",
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Predict time and memory of small runs of every experiment, then run them."""
    from apps.bench_plan import run, show

    lines = Lines(quiet=as_json)
    found = run(model, names(cases), device=device, dtype=dtype, threads=threads, say=lines.say)
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if as_json:
        say(json.dumps(found))
    else:
        show(found)
