"""Commands about the token-feature graph: `graph`, `effects`, `steer`, `bench graph`."""

from pathlib import Path
from typing import Annotated

import typer

from apps.console import Lines, show_figures
from apps.engines import Place, measured, placed
from apps.options import (
    AsJson,
    Bos,
    Corpus,
    Device,
    Dtype,
    Field,
    Model,
    Output,
    Resume,
    Seed,
    SkipFirst,
    Threads,
    Window,
    check_corpus,
    command_line,
    finished_run,
    interruptible,
    load,
    machine,
    numbers,
    run_folder,
)
from interp.errors import PromptError

Features = Annotated[
    list[str] | None,
    typer.Option(help="Dictionary: folder, or hub:org/name/folder; trained if none. Repeat."),
]


def register(app: typer.Typer, bench: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(interruptible(placed(graph)))
    app.command()(interruptible(effects))
    app.command()(interruptible(steer))
    bench.command("graph")(interruptible(bench_graph))


def graph(
    model: Model = "smollm2-135m",
    corpus: Corpus = [],  # noqa: B006
    layer: Annotated[
        str, typer.Option(help="Layers, as 7,15. With --features: where each belongs, unchecked.")
    ] = "",
    features: Features = None,
    site: Annotated[str, typer.Option(help="What a trained dictionary reads.")] = "resid_post",
    out_site: Annotated[
        str, typer.Option(help="What it reconstructs; mlp_in and mlp_out train a transcoder.")
    ] = "",
    tokens: Annotated[int, typer.Option(help="Positions of the graph; 0: all text.")] = 0,
    train_tokens: Annotated[int, typer.Option(help="Positions to train on.")] = 300_000,
    width: Annotated[int, typer.Option(help="Features of a trained dictionary.")] = 4096,
    k: Annotated[int, typer.Option(help="Features active at a position, trained.")] = 32,
    activation: Annotated[str, typer.Option(help="topk or batchtopk, trained.")] = "batchtopk",
    steps: Annotated[int, typer.Option(help="Training steps.")] = 400,
    batch: Annotated[int, typer.Option(help="Positions of a step.")] = 2048,
    dictionaries: Annotated[int, typer.Option(help="Dictionaries a layer, of other seeds.")] = 1,
    control: Annotated[
        str, typer.Option(help="shuffled: also a model with shuffled weights; none.")
    ] = "none",
    control_tokens: Annotated[int, typer.Option(help="Positions of that control.")] = 100_000,
    length: Window = 512,
    bos: Bos = "auto",
    skip_first: SkipFirst = 4,
    cut: Annotated[float, typer.Option(help="Share of occurrences of function tokens.")] = 0.40,
    rule: Annotated[
        str, typer.Option(help="Edge: any, 30%, count>=5, documents>=2, mass>=90%.")
    ] = "any",
    top: Annotated[int, typer.Option(help="Tokens of the cumulative table.")] = 10,
    blocks: Annotated[int, typer.Option(help="Stretches of text: parts, and clusters.")] = 24,
    field: Field = "text",
    export: Annotated[
        Path | None, typer.Option(help="Also edges: .parquet, or a part as .graphml.")
    ] = None,
    output: Output = None,
    resume: Resume = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    *,
    place: Place,
) -> None:
    """Count which tokens activate which features, and tell it from mere frequency."""
    from apps.graph_report import finish
    from circuits.graph_plan import GraphSettings, check_settings
    from circuits.graph_result import check_export

    settings = GraphSettings(
        layers=numbers(layer, int, "layer"), features=tuple(features or ()), site=site,
        out_site=out_site, tokens=tokens, train_tokens=train_tokens, d_dict=width, k=k,
        activation=activation, steps=steps, batch=batch, seeds=dictionaries, control=control,
        control_tokens=control_tokens, length=length, bos=bos, skip_first=skip_first, cut=cut,
        rule=rule, top=top, blocks=blocks, field=field, seed=seed,
    )  # fmt: skip
    check_settings(settings)
    if export is not None:
        check_export(export)
    check_corpus(corpus)
    folder = run_folder(output, f"{Path(model).name}-graph", resume=resume)
    lines = Lines(quiet=as_json)
    result = measured(
        "graph", model, list(corpus), settings=settings, folder=folder, lines=lines,
        place=place, unit="",
    )  # fmt: skip
    result.settings["command"] = command_line("graph")
    finish(result, folder, lines, as_json=as_json)
    if export is not None:
        lines.say(f"edges: {result.export(export).resolve()}")


def effects(
    run: Annotated[Path, typer.Argument(help="Folder of a finished `graph` run.")],
    corpus: Corpus = [],  # noqa: B006
    model: Annotated[str, typer.Option(help="Model, if not the one the run names.")] = "",
    station: Annotated[str, typer.Option(help="Dictionary, such as L15; the first.")] = "",
    what: Annotated[str, typer.Option(help="all, top or reactivated features.")] = "all",
    trials: Annotated[int, typer.Option(help="Predictions.")] = 60,
    draws: Annotated[int, typer.Option(help="Controls of each kind.")] = 20,
    output: Output = None,
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Take features away at function and at content tokens equally far from the prediction."""
    from apps.graph_report import show_effects
    from circuits.effect_plan import EffectSettings, check_effects
    from circuits.effects_result import FeatureEffects
    from circuits.effects_run import feature_effects
    from circuits.graph_result import FeatureGraph

    settings = EffectSettings(what=what, n_trials=trials, draws=draws, seed=seed)
    check_effects(settings)
    check_corpus(corpus)
    graph_run = FeatureGraph.load(run)
    folder = run_folder(output, f"{run.name}-effects", resume=resume)
    lines = Lines(quiet=as_json)
    loaded = load(model or graph_run.provenance.reference, device, dtype, None, None, threads)
    result = finished_run(folder, FeatureEffects.load, loaded)
    if result is None:
        with lines.progress("predictions") as report:
            result = feature_effects(
                loaded, graph_run, list(corpus), settings, station=station,
                parts=folder / "parts", progress=report,
            )  # fmt: skip
        result.settings.update(command=command_line("effects"), machine=machine(loaded))
        result.save(folder)
    show_effects(result, folder, lines, as_json=as_json)


def steer(
    features: Annotated[str, typer.Argument(help="Dictionary: folder or hub:org/name/folder.")],
    trait: Annotated[str, typer.Option(help="A prompt that forces the trait.")],
    success: Annotated[str, typer.Option(help="Regular expression that shows the trait.")],
    tests: Annotated[Path, typer.Option(help="File of prompts, one a line.")],
    model: Annotated[str, typer.Option(help="Folder, bundled or hub name.")] = "smollm2-135m",
    alphas: Annotated[str, typer.Option(help="Multiples of the activation.")] = "1,2,4",
    ks: Annotated[str, typer.Option(help="Numbers of features of the curve.")] = "1,2,4,8,16,32",
    new_tokens: Annotated[int, typer.Option(help="Length of the texts.")] = 12,
    draws: Annotated[int, typer.Option(help="Random directions, and matched features.")] = 5,
    style: Annotated[str, typer.Option(help="auto, chat or plain.")] = "auto",
    output: Annotated[Path | None, typer.Option(help="A JSON file for the result.")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Steer by features of a trait: rates of success, with controls, over k and strength."""
    from apps.graph_report import show_steering
    from circuits.steering import SteerSettings, check_steering
    from circuits.steering import steer as run
    from probes.feature_files import check_dictionary, read_dictionary

    if not tests.exists():
        raise PromptError(f"{tests} does not exist; give a file of prompts, one a line")
    prompts = tuple(line for line in tests.read_text("utf-8").splitlines() if line.strip())
    settings = SteerSettings(
        trait=trait, tests=prompts, success=success, alphas=numbers(alphas, float, "alphas"),
        ks=numbers(ks, int, "ks"), max_new_tokens=new_tokens, draws=draws, style=style, seed=seed,
    )  # fmt: skip
    check_steering(settings)
    dictionary = read_dictionary(features)
    lines = Lines(quiet=as_json)
    loaded = load(model, device, dtype, None, None, threads)
    check_dictionary(dictionary, loaded.spec)
    with lines.progress("rates") as report:
        found = run(loaded, dictionary.to(loaded.device), settings, progress=report)
    show_steering(found, loaded, output, lines, as_json=as_json)


def bench_graph(
    model: Model = "smollm2-135m",
    layer: Annotated[int, typer.Option(help="Layer; -1: half way up.")] = -1,
    width: Annotated[int, typer.Option(help="Features of the dictionary.")] = 4096,
    tokens: Annotated[int, typer.Option(help="Positions.")] = 8192,
    length: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time encoding and counting against the bare forward, and counting against a dense one."""
    from apps.bench_graph import run

    loaded = load(model, device, dtype, None, None, threads)
    figures = run(loaded, layer=layer, width=width, tokens=tokens, length=length)
    show_figures(figures, output, as_json=as_json)
