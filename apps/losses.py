"""Commands about series of checkpoints: `losses` and `growth`. Registered by `apps.cli`."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.console import Lines, print_table, say
from apps.options import (
    AsJson,
    Bos,
    Corpus,
    Device,
    Dtype,
    Field,
    Output,
    Resume,
    Seed,
    SkipFirst,
    Threads,
    Window,
    check_corpus,
    command_line,
    idle_cores,
    interruptible,
    machine,
    numbers,
    run_folder,
)
from interp.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd

Models = Annotated[
    list[str], typer.Argument(help="Checkpoints in order: folders, names, or name@revision.")
]
PAGE = "page.html"


def register(app: typer.Typer, _: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(interruptible(losses))
    app.command()(interruptible(growth))


def losses(
    models: Models,
    corpus: Corpus = [],  # noqa: B006
    baseline: Annotated[
        list[str] | None, typer.Option(help="Text of the n-gram model; half the corpus if none.")
    ] = None,
    classes: Annotated[
        str, typer.Option(help="frequency: the most frequent tokens; linguistic: function words.")
    ] = "frequency",
    cut: Annotated[float, typer.Option(help="Share of occurrences of function tokens.")] = 0.40,
    order: Annotated[int, typer.Option(help="Tokens of the longest n-gram, 1 to 3.")] = 2,
    tokens: Annotated[int, typer.Option(help="Positions to measure; 0: all.")] = 0,
    length: Window = 512,
    bos: Bos = "auto",
    skip_first: SkipFirst = 4,
    gradients: Annotated[int, typer.Option(help="Windows of the gradient's shares; 0: none.")] = 0,
    field: Field = "text",
    output: Output = None,
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Loss of the next token by class of it and of the token before, over checkpoints."""
    from apps.loss_page import NARROW, loss_page
    from circuits.loss_plan import LossSettings, check_settings
    from circuits.loss_result import LossResult
    from circuits.loss_run import loss_groups

    settings = LossSettings(
        classes=classes, cut=cut, order=order, tokens=tokens, length=length, bos=bos,
        skip_first=skip_first, gradients=gradients, field=field, seed=seed,
    )  # fmt: skip
    check_settings(settings)
    folder = _begin(models, corpus, output, "losses", resume=resume)
    lines = Lines(quiet=as_json)

    def run(report: Any) -> LossResult:
        return loss_groups(
            models, list(corpus), settings, baseline=baseline or None,
            load=_load(device, dtype, threads), parts=folder / "parts", progress=report,
        )  # fmt: skip

    result = _finished(folder, LossResult, models) or _made("losses", run, lines, "positions")
    shown = result.rows[result.rows["target"] == "all"]
    _finish(result, folder, loss_page(result), lines, as_json=as_json, answer=result.reading)
    if not as_json:
        _print("Losses by group", shown, NARROW)
        lines.say(result.reading)


def growth(
    models: Models,
    corpus: Corpus = [],  # noqa: B006
    layer: Annotated[str, typer.Option(help="Layers, as 1,2; half way up.")] = "",
    shared: Annotated[
        list[str] | None,
        typer.Option(help="Dictionary of all models, one a layer; trained on the last if none."),
    ] = None,
    separate: Annotated[str, typer.Option(help="train: a dictionary each too; none.")] = "train",
    control: Annotated[
        str, typer.Option(help="shuffled: also a model of shuffled weights; none.")
    ] = "shuffled",
    tokens: Annotated[int, typer.Option(help="Positions to count.")] = 20_000,
    train_tokens: Annotated[int, typer.Option(help="Positions to train on.")] = 100_000,
    width: Annotated[int, typer.Option(help="Features of a trained dictionary.")] = 2048,
    k: Annotated[int, typer.Option(help="Features active at a position, trained.")] = 32,
    steps: Annotated[int, typer.Option(help="Training steps of 2,048 positions.")] = 300,
    length: Window = 512,
    bos: Bos = "auto",
    skip_first: SkipFirst = 4,
    field: Field = "text",
    output: Output = None,
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Features that fire on the same text, over checkpoints: with one dictionary and with many."""
    from apps.loss_page import GROWTH_COLUMNS, growth_answer, growth_page
    from circuits.growth_plan import GrowthSettings, check_growth
    from circuits.growth_result import GrowthResult
    from circuits.growth_run import feature_growth
    from probes.feature_files import read_dictionary

    settings = GrowthSettings(
        layers=numbers(layer, int, "layer"), separate=separate, control=control, tokens=tokens,
        train_tokens=train_tokens, d_dict=width, k=k, steps=steps, length=length, bos=bos,
        skip_first=skip_first, field=field, seed=seed,
    )  # fmt: skip
    check_growth(settings)
    folder = _begin(models, corpus, output, "growth", resume=resume)
    lines = Lines(quiet=as_json)

    def run(report: Any) -> GrowthResult:
        return feature_growth(
            models, list(corpus), settings, shared=[read_dictionary(d) for d in shared or ()],
            load=_load(device, dtype, threads), parts=folder / "parts", progress=report,
        )  # fmt: skip

    result = _finished(folder, GrowthResult, models) or _made("growth", run, lines, "models")
    answer = growth_answer(result)
    _finish(result, folder, growth_page(result), lines, as_json=as_json, answer=answer)
    if not as_json:
        narrow = {k: v for k, v in GROWTH_COLUMNS.items() if k != "reading"}
        _print("Features that fire", result.rows, narrow)
        for row in result.rows.to_dict("records"):
            lines.say(
                f"{row['model']}, layer {row['layer']}, {row['dictionary']}: {row['reading']}"
            )
        lines.say(answer)


# -- services of both -------------------------------------------------------------------------


def _begin(
    models: list[str], corpus: list[str], output: Path | None, what: str, *, resume: bool
) -> Path:
    check_corpus(corpus)
    return run_folder(output, f"{Path(models[-1]).name}-{what}", resume=resume)


def _load(device: str | None, dtype: str, threads: int | None) -> dict[str, Any]:
    """Options of `interp.load`, and as many threads as there are idle cores."""
    import torch

    torch.set_num_threads(threads or idle_cores())
    return {"device": device, "dtype": dtype}


def _finished(folder: Path, kind: Any, models: list[str]) -> Any:
    """A complete run that is there already (asked for with --resume), or None."""
    from circuits.checkpoints import named_models

    if not (folder / "result.json").exists():
        return None
    result = kind.load(folder)
    if list(result.models) != list(named_models(models)):
        raise ResultError(f"{folder} holds a result of other models; name another --output")
    return result


def _made(command: str, run: Callable[[Any], Any], lines: Lines, unit: str) -> Any:
    import torch

    with lines.progress(unit) as report:
        result = run(report)
    place = SimpleNamespace(device=torch.device(result.provenance.device))
    result.settings.update(command=command_line(command), machine=machine(place))
    return result


def _finish(
    result: Any, folder: Path, page: str, lines: Lines, *, as_json: bool, answer: str
) -> None:
    """Save, write the page, print the result in plain values where a program reads it."""
    from apps.html_parts import write_whole

    result.save(folder)
    written = write_whole(folder / PAGE, page)
    if as_json:
        rows = json.loads(result.rows.to_json(orient="records"))
        say(json.dumps({
            "folder": str(folder), "models": list(result.models), "answer": answer, "rows": rows,
            "text": result.text, "settings": result.settings,
            "seconds": round(sum(m.seconds for m in result.models.values()), 1),
            "created": result.provenance.created,
        }, allow_nan=False))  # fmt: skip
    lines.say(f"run folder: {folder.resolve()}\npage: {written.resolve()}")


def _print(title: str, rows: "pd.DataFrame", columns: dict[str, str]) -> None:
    from apps.loss_page import written

    known = {k: v for k, v in columns.items() if not rows[k].isna().all()}
    print_table(title, list(known.values()), written(rows, known, bounds=False))
