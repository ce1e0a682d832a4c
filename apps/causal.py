"""Commands that test claims causally: validate, patch, circuit, bench validate.

Parses, calls what a notebook calls, prints and saves; registered by `apps.cli`.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from apps.console import Lines, show_figures
from apps.engines import Place, measured, placed
from apps.options import (
    AsJson,
    Device,
    Dtype,
    Model,
    Output,
    Resume,
    Seed,
    Threads,
    command_line,
    interruptible,
    load,
    names,
    numbers,
    run_folder,
)  # fmt: skip
from interp.errors import ResultError

Heads = Annotated[
    str,
    typer.Argument(
        help="A scan's run folder, a head file (.json, .yaml, .tsv), or heads such as L5H3,L7H1."
    ),
]
ModelOption = Annotated[
    str, typer.Option("--model", help="The model; default: the one that the run names.")
]
TopHeads = Annotated[int, typer.Option(help="Best heads tested. Default: 10, or all of a list.")]
Length = Annotated[int, typer.Option(help="Tokens of context; 0: the shortest scanned.")]
NeedleCount = Annotated[
    int, typer.Option("--needles-tested", help="Test questions, a needle each.")
]
PromptHaystack = Annotated[
    list[str] | None, typer.Option("--haystack", help="Text of your own instead of the scan's.")
]
PromptNeedles = Annotated[
    str, typer.Option("--needles", help="Needles of your own instead of the scan's.")
]
PromptStyle = Annotated[str, typer.Option("--style", help="auto, chat or plain; scan's if empty.")]
PromptCue = Annotated[int, typer.Option("--cue-words", help="Opening words; -1: the scan's.")]


def register(app: typer.Typer, bench: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (validate, patch, circuit):
        app.command()(interruptible(placed(command)))
    bench.command("validate")(interruptible(bench_validate))


def validate(
    heads: Heads,
    model: ModelOption = "",
    top: TopHeads = 0,
    ablations: Annotated[
        str, typer.Option(help="Names with commas. Default: mean,zero,resample,uniform,knockout.")
    ] = "",
    scope: Annotated[str, typer.Option(help="suffix, decode or everywhere.")] = "suffix",
    metric: Annotated[
        str, typer.Option(help="Of the verdicts: logprob, logit_diff, exact, contains, rouge.")
    ] = "logprob",
    preset: Annotated[str, typer.Option(help="default, or wu2024 (as published).")] = "default",
    draws: Annotated[int, typer.Option(help="Matched random sets.")] = 120,
    curve: Annotated[str, typer.Option(help="Sizes of the dose-response curve.")] = "1,2,5,20,50",
    smallest: Annotated[
        float, typer.Option(help="Smallest effect of interest, in the metric's unit.")
    ] = 0.1,
    needles_tested: NeedleCount = 15,
    length: Length = 0,
    generate: Annotated[bool, typer.Option(help="Also generate text.")] = False,
    generated: Annotated[int, typer.Option(help="Random sets that text is generated for.")] = 20,
    alone: Annotated[bool, typer.Option(help="Also ablate every head alone.")] = True,
    specificity: Annotated[bool, typer.Option(help="Also measure text, facts, copies.")] = True,
    haystack: PromptHaystack = None,
    needles: PromptNeedles = "",
    style: PromptStyle = "",
    cue_words: PromptCue = -1,
    output: Output = None,
    resume: Resume = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    *,
    place: Place,
) -> None:
    """Do these heads do the retrieval? Ablate, put back, compare with matched random sets."""
    from apps.validation_report import finish
    from circuits.validation_plan import ValidateSettings, check_settings, with_preset

    wanted: dict[str, Any] = {"ablations": names(ablations)} if ablations else {}
    settings = with_preset(
        ValidateSettings(
            top=top, scope=scope, metric=metric, n_draws=draws, curve=numbers(curve, int, "curve"),
            smallest=smallest, n_needles=needles_tested, length=length, generate=generate,
            n_generated=generated, alone=alone, specificity=specificity, seed=seed,
            prompts=_prompts(haystack, needles, style, cue_words), **wanted,
        ),
        preset,
    )  # fmt: skip
    check_settings(settings)
    lines, folder = _start(heads, "validate", output, resume, as_json)
    result = measured(
        "validate", model or scanned_model(heads), _read_here(heads), settings=settings,
        folder=folder, lines=lines, place=place,
    )  # fmt: skip
    result.settings["command"] = command_line("validate")
    finish(result, folder, lines, as_json=as_json)


def patch(
    heads: Annotated[
        str, typer.Argument(help="A scan's run folder (for its prompts), or a model.")
    ],
    model: ModelOption = "",
    sites: Annotated[
        str, typer.Option(help="Of resid_pre, resid_mid, resid_post, attn_out, mlp_out, z.")
    ] = "resid_pre,attn_out,mlp_out,z",
    layers: Annotated[int, typer.Option(help="Layers patched, evenly spaced; 0: all.")] = 8,
    confirm: Annotated[int, typer.Option(help="Heads of the screen patched exactly.")] = 16,
    needles_tested: NeedleCount = 4,
    length: Annotated[int, typer.Option(help="Tokens of context.")] = 128,
    depth: Annotated[float, typer.Option(help="Where the needle begins, 0 to 1.")] = 0.5,
    haystack: PromptHaystack = None,
    needles: PromptNeedles = "",
    style: PromptStyle = "",
    cue_words: PromptCue = -1,
    output: Output = None,
    resume: Resume = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    *,
    place: Place,
) -> None:
    """Patch activations between a question and its twin, both ways; screen heads by gradient."""
    from apps.circuit_report import finish_patch
    from circuits.patching import PatchSettings

    lines, folder = _start(heads, "patch", output, resume, as_json)
    is_run = Path(heads).is_dir() and (Path(heads) / "result.json").exists()
    inherited = _scanned(heads) if is_run else ()
    own = dict(_prompts(haystack, needles, style, cue_words))
    settings = PatchSettings(
        sites=names(sites), layers=layers, n_needles=needles_tested, length=length,
        depth=depth, n_confirm=confirm, prompts=tuple((dict(inherited) | own).items()), seed=seed,
    )  # fmt: skip
    named = (model or scanned_model(heads)) if is_run else heads
    result = measured(
        "patch", named, settings=settings, folder=folder, lines=lines, place=place,
    )  # fmt: skip
    result.settings["command"] = command_line("patch")
    finish_patch(result, folder, lines, as_json=as_json)


def circuit(
    heads: Heads,
    model: ModelOption = "",
    receivers: Annotated[int, typer.Option(help="How many of the best heads are traced.")] = 3,
    senders: Annotated[int, typer.Option(help="Candidates for each of their inputs.")] = 8,
    random: Annotated[int, typer.Option(help="Random senders, random circuits.")] = 8,
    needles_tested: NeedleCount = 6,
    length: Annotated[int, typer.Option(help="Tokens of context.")] = 128,
    depth: Annotated[float, typer.Option(help="Where the needle begins, 0 to 1.")] = 0.5,
    haystack: PromptHaystack = None,
    needles: PromptNeedles = "",
    style: PromptStyle = "",
    cue_words: PromptCue = -1,
    output: Output = None,
    resume: Resume = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    *,
    place: Place,
) -> None:
    """Which earlier heads and layers feed the best heads; how much a circuit of heads carries."""
    from apps.circuit_report import finish_circuit
    from circuits.circuit import CircuitSettings

    settings = CircuitSettings(
        receivers=receivers, senders=senders, n_random=random, n_needles=needles_tested,
        length=length, depth=depth, seed=seed,
        prompts=_prompts(haystack, needles, style, cue_words),
    )  # fmt: skip
    lines, folder = _start(heads, "circuit", output, resume, as_json)
    result = measured(
        "circuit", model or scanned_model(heads), _read_here(heads), settings=settings,
        folder=folder, lines=lines, place=place,
    )  # fmt: skip
    result.settings["command"] = command_line("circuit")
    finish_circuit(result, folder, lines, as_json=as_json)


def bench_validate(
    model: Model = "smollm2-135m",
    length: Annotated[int, typer.Option(help="Tokens of context.")] = 1024,
    draws: Annotated[int, typer.Option(help="Ablations: random sets of ten heads.")] = 100,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time ablations as rows of batched suffixes against one full forward for each."""
    from apps.bench_validate import run

    loaded = load(model, device, dtype, None, None, threads)
    figures = run(loaded, length=length, n_draws=draws)
    show_figures(figures, output, as_json=as_json)


# -- what the commands share ------------------------------------------------------------------


def _start(
    heads: str, command: str, output: Path | None, resume: bool, as_json: bool
) -> tuple[Lines, Path]:
    """Where to print and where to write; refused before a model is loaded."""
    path = Path(heads)
    name = path.stem if path.exists() else "heads"
    folder = run_folder(output, f"{name}-{command}", resume=resume)
    return Lines(quiet=as_json), folder


def scanned_model(heads: str) -> str:
    """The model that a scan was made of.

    Raises:
        ResultError: no scan.
    """
    from circuits.scan_result import ScanResult

    if not Path(heads).is_dir():
        raise ResultError("heads without a scan do not name their model; add --model")
    made = ScanResult.load(heads).provenance
    return made.reference or made.model


def _read_here(heads: str) -> Any:
    """A scan, read where its folder is: workers elsewhere are sent it; other lists as they are."""
    from circuits.scan_result import ScanResult

    return ScanResult.load(heads) if Path(heads).is_dir() else heads


def _scanned(heads: str) -> tuple[tuple[str, Any], ...]:
    from circuits.candidates import INHERITED
    from circuits.scan_result import ScanResult

    settings = ScanResult.load(heads).settings
    return tuple((k, settings[k]) for k in INHERITED if k in settings)


def _prompts(
    haystack: list[str] | None, needles: str, style: str, cue_words: int
) -> tuple[tuple[str, Any], ...]:
    given = {
        "haystack": tuple(haystack or ()), "needles": needles, "style": style,
        "cue_words": None if cue_words < 0 else cue_words,
    }  # fmt: skip
    return tuple((k, v) for k, v in given.items() if v not in ((), "", None))
