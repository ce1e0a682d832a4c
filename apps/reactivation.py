"""The command `trace`: features that come back, in a prompt or over a text."""

from pathlib import Path
from typing import Annotated

import typer

from apps.console import Lines
from apps.options import (
    AsJson,
    Device,
    Dtype,
    Resume,
    Seed,
    Threads,
    command_line,
    finished_run,
    interruptible,
    load,
    machine,
    run_folder,
)
from interp.errors import PromptError


def register(app: typer.Typer, _bench: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(interruptible(trace))


def trace(
    run: Annotated[Path, typer.Argument(help="Folder of a finished `graph` run.")],
    prompt: Annotated[str, typer.Option(help="A prompt; traced to the token after it.")] = "",
    corpus: Annotated[
        list[str] | None,
        typer.Option(help="Text instead: file, folder or pattern. Repeat."),
    ] = None,
    target: Annotated[
        str, typer.Option(help="Next token of the prompt; the most likely one.")
    ] = "",
    heads: Annotated[
        str, typer.Option(help="Retrieval heads: a scan's run folder, a list, L5H3,L7H1.")
    ] = "",
    top: Annotated[int, typer.Option(help="How many of them; 0: all that are listed.")] = 20,
    model: Annotated[str, typer.Option(help="Model, if not the one the run names.")] = "",
    station: Annotated[str, typer.Option(help="Dictionary, such as L15; the first.")] = "",
    objective: Annotated[
        str, typer.Option(help="Attribute to: logit, centred, log-prob.")
    ] = "logit",
    tokens: Annotated[int, typer.Option(help="Positions of the index; 0: all text.")] = 200_000,
    predictions: Annotated[int, typer.Option(help="Predictions that are attributed.")] = 48,
    context: Annotated[int, typer.Option(help="Tokens before each.")] = 96,
    features: Annotated[int, typer.Option(help="Features whose heads are traced.")] = 32,
    exact: Annotated[int, typer.Option(help="Features ablated exactly, of each prediction.")] = 8,
    densest: Annotated[
        float, typer.Option(help="Leave out features that fire at a larger share of positions.")
    ] = 0.1,
    skip_first: Annotated[int, typer.Option(help="Positions of the prompt read over.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Folder of the result.")] = None,
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Which features of content tokens come back before a prediction, to what use, by which heads.

    Raises:
        PromptError: neither a prompt nor a text, or both.
    """
    from apps.reactivation_page import finish_corpus, finish_prompt
    from circuits.graph_result import FeatureGraph
    from circuits.head_sets import check_heads, read_heads
    from circuits.reactivation_corpus import reactivation
    from circuits.reactivation_plan import ReactivationSettings, check_reactivation
    from circuits.reactivation_result import ReactivationResult

    if bool(prompt) == bool(corpus):
        raise PromptError("give either --prompt TEXT or --corpus FILE, FOLDER or PATTERN")
    settings = ReactivationSettings(
        tokens=tokens, densest=densest, n_predictions=predictions, context=context,
        n_features=features, n_exact=exact, objective=objective, seed=seed,
    )  # fmt: skip
    check_reactivation(settings)
    graph = FeatureGraph.load(run)
    folder = run_folder(output, f"{run.name}-trace", resume=resume)
    lines = Lines(quiet=as_json)
    loaded = load(model or graph.provenance.reference, device, dtype, None, None, threads)
    known = None
    if heads:
        known = read_heads(heads, top=top or None, n_groups=loaded.spec.n_groups,
                           n_heads=loaded.spec.n_heads)  # fmt: skip
        check_heads(known.heads, loaded.spec)
    if prompt:
        made = _prompt(loaded, graph, prompt, target, station, settings, known, skip_first)
        finish_prompt(made, folder, lines, slug=_slug(prompt), as_json=as_json)
        return
    result = finished_run(folder, ReactivationResult.load, loaded)
    if result is None:
        with lines.progress("positions") as report:
            result = reactivation(
                loaded, graph, list(corpus or ()), settings, station=station, heads=known,
                parts=folder / "parts", progress=report,
            )  # fmt: skip
        result.settings.update(command=command_line("trace"), machine=machine(loaded))
    finish_corpus(result, folder, lines, as_json=as_json)


def _prompt(loaded, graph, prompt, target, station, settings, known, skip_first):
    """The trace of a prompt, with features named by the tokens of the graph."""
    from dataclasses import replace

    from circuits.reactivation_corpus import dense_features, feature_names
    from circuits.reactivation_prompt import trace_prompt

    tokenizer, own = loaded.tokenizer, graph.station(station)
    aim = tokenizer(target, add_special_tokens=False).input_ids if target else [None]
    if len(aim) != 1:
        raise PromptError(f"{target!r} is {len(aim)} tokens; name one, and mind the space in front")
    made = trace_prompt(
        loaded, own.dictionary, tokenizer(prompt).input_ids,
        function=graph.function_mask(loaded.spec.d_vocab), target=aim[0],
        objective=settings.objective, heads=known.heads if known else None,
        n_features=settings.n_features, n_exact=settings.n_exact, skip_first=skip_first,
        left_out=dense_features(own, settings.densest),
    )  # fmt: skip
    return replace(made, names=feature_names(graph, own.key, made.features["feature"].unique()))


def _slug(prompt: str) -> str:
    """A file name of the prompt's first words."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in prompt.lower()).split()
    return "-".join(words)[:48].strip("-") or "prompt"
