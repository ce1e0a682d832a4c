"""How often are the detectors and the causal tests right? Both, on models whose circuit is known.

Every planted model (`probes.planted`) goes the way of any other: loaded, scanned, its claims
validated. Scores of heads are then held against the heads that are known to matter, verdicts
against those that are known to be right (`circuits.calibration_truth`).

A single head has no more matched random sets than its layer has other heads, and that bounds its
p. In the family that all tests make together, .05 would take 139 sets, so 140 heads a layer, which
few models have: such a claim is tested by one ablation at a time, and so it is here. Each ablation
is judged in a family of two, itself and denoising, as `validate` has it with a single ablation.
Planted models have forty heads a layer here: 39 sets give a p of .025, after Holm's correction
.05, so that no true claim is out of reach.

Ablations act where the planted circuits do: in the rows that answer (scope `decode`), and in the
question too where a circuit begins there. `scope="suffix"`, the default of `validate`, ought to
give the same verdicts at several times the cost.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.ablations import scope as known_scope
from circuits.calibration_result import CalibrationResult
from circuits.calibration_truth import (
    ABLATIONS,
    IN_QUESTION,
    TESTS,
    THRESHOLDS,
    TRUTHS,
    expected,
    is_right,
)
from circuits.retrieval import scan
from circuits.scan_result import ScanResult
from circuits.shelf import Shelf
from circuits.statistics import auroc, cluster_interval
from circuits.validation import validate
from circuits.validation_plan import ValidateSettings
from circuits.validation_result import DENOISE, ValidationResult
from interp.errors import PromptError, ResultError, SiteError, UnknownNameError
from interp.sites import Head
from interp.store import provenance
from probes.planted import PLANTED, Claim, Planted, Truth, build, write_materials

if TYPE_CHECKING:
    from circuits.effects import Finding
    from interp.backends.hf import HFModel

Progress = Callable[[int, int, str], None]
Row = dict[str, Any]
Runs = Mapping[str, ValidationResult | Exception]

N_HEADS = 40
N_DRAWS = 139
"""So many that `validate` agrees to run all tests at once; a single head has 39 all the same."""
N_TESTED = 6
"""Questions of a validation: as few as give a verdict; planted effects dwarf their spread."""
FIRST = "first by copy score"
PROMPTS = ("style", "cue_words", "haystack", "needles")
"""Prompt options of a scan that a validation of heads given by name is told again."""


def calibrate(
    *,
    models: Sequence[str] = tuple(PLANTED),
    seeds: int = 3,
    n_draws: int = N_DRAWS,
    scope: str = "decode",
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Score every detector and every causal test on planted models.

    Args:
        models: names in `probes.planted.PLANTED`.
        seeds: models built of each name, with other places of heads, distractors and texts.
        n_draws: matched random sets; a claim about one head has 39 of them, whatever is asked.
        scope: of the ablations, `decode` or `suffix`.
        folder: keeps finished models; a run that finds its own there goes on after them.
        progress: called with models done, models in all, and what is running.

    Raises:
        UnknownNameError, PromptError: bad input, before anything runs.
        ResultError: `folder` belongs to other settings.
    """
    _check(models, seeds=seeds, n_draws=n_draws, scope=scope)
    settings = {
        "models": list(models), "seeds": seeds, "n_draws": n_draws, "n_heads": N_HEADS,
        "n_tested": N_TESTED, "scope": scope, "ablations": list(ABLATIONS),
    }  # fmt: skip
    shelf, report = Shelf(folder, settings), progress or (lambda *_: None)
    todo = [(name, seed) for seed in range(seeds) for name in models]
    rows: list[Row] = []
    for i, (name, seed) in enumerate(todo):
        report(i, len(todo), f"{name}, seed {seed}")
        one = partial(_one, name, seed, n_draws=n_draws, scope=scope)
        rows += shelf.kept_rows(f"{name}-{seed}", one)
        report(i + 1, len(todo), "")
    return CalibrationResult.of(settings, rows)


def _check(models: Sequence[str], *, seeds: int, n_draws: int, scope: str) -> None:
    for name in models:
        if name not in PLANTED:
            raise UnknownNameError("planted model", name, PLANTED)
    if not models or seeds < 1 or n_draws < N_DRAWS:
        raise PromptError(
            f"a calibration needs a model, a seed and {N_DRAWS} matched sets (fewer give no "
            f"corrected p of .05), got {len(models)}, {seeds} and {n_draws}"
        )
    if known_scope(scope) == "everywhere":
        raise PromptError("knockout is not defined everywhere; calibrate with decode or suffix")


def _one(name: str, seed: int, *, n_draws: int, scope: str) -> list[Row]:
    """All rows of one model; `table` says of which table each is."""
    import interp

    started = time.monotonic()
    planted = build(name, seed=seed, n_heads=N_HEADS)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        options = write_materials(folder, seed=seed).scan | planted.truth.options | {"seed": seed}
        result = scan(model, **options)
        settings = _settings(planted.truth.planted, options, n_draws=n_draws, scope=scope)
        tests = _tests(model, planted.truth, result, settings=settings)
        rows = [*_detectors(result, planted.truth), *tests]
    made = asdict(provenance(model, seconds=time.monotonic() - started))
    return [{"model": name, "seed": seed, **row} for row in (*rows, {"table": "made", **made})]


# -- detectors --------------------------------------------------------------------------------


def _detectors(result: ScanResult, truth: Truth) -> Iterator[Row]:
    """One row a detector and truth: AUROC, and who is called at the threshold."""
    gate = bool(result.trials["passed"].any())  # scores of a model that never answers stand too
    for name, threshold in THRESHOLDS.items():
        if name not in (*result.values, *result.roles):
            continue
        score = result.mean(name, gate=gate)
        if threshold.floor is None:
            called = result.uncertainty(name, gate=gate).low.reshape(score.shape) > 0
        else:
            called = score >= threshold.floor
        for which in TRUTHS:
            heads: tuple[Head, ...] = getattr(truth, which)
            yes = np.zeros(score.shape, dtype=bool)
            yes[[h.layer for h in heads], [h.head for h in heads]] = True
            area = auroc(score, yes)
            yield {
                "table": "detectors", "detector": name, "truth": which,
                "auroc": None if np.isnan(area) else area,
                "true": int(yes.sum()), "found": int((called & yes).sum()),
                "false": int((~yes).sum()), "fooled": int((called & ~yes).sum()),
                "fooled_by": _roles(called & ~yes, truth),
            }  # fmt: skip


def _roles(called: np.ndarray, truth: Truth) -> list[str]:
    heads = (Head(int(a), int(b)) for a, b in np.argwhere(called))
    return [truth.roles.get(head, "random") for head in heads]


# -- causal tests -----------------------------------------------------------------------------


def _settings(
    planted: Planted, options: Mapping[str, Any], *, n_draws: int, scope: str
) -> ValidateSettings:
    """Of a validation: the prompts of the scan, no curve, no single heads, no other texts."""
    depths = tuple(options["depths"])
    if options.get("mode") == "single":
        depths = depths[len(depths) // 2 :][:1]  # one needle in a context
    elif planted.window:
        depths = depths[len(depths) // 2 :]  # needles that it has in sight: it answers no others
    return ValidateSettings(
        ablations=ABLATIONS,
        scope=scope,
        length=options["lengths"][0],
        depths=depths,
        n_needles=N_TESTED,
        n_draws=n_draws,
        curve=(),
        alone=False,
        specificity=False,
        prompts=tuple((name, options[name]) for name in PROMPTS),
        seed=options["seed"],
    )


def _tests(
    model: "HFModel", truth: Truth, result: ScanResult, *, settings: ValidateSettings
) -> Iterator[Row]:
    """One row a claim and test, and one a copying head on whether others make good for it."""
    for heads, claim in truth.claims:
        mine = replace(settings, top=len(heads) or 1)
        if not heads:  # the prompts come with the scan
            mine = replace(mine, prompts=())
        if (truth.planted.name, claim.roles) in IN_QUESTION:
            mine = replace(mine, scope="suffix")
        runs = _validated(model, heads or result, mine)
        for test in TESTS:
            yield _verdict(truth.planted.name, claim, test, runs=runs)
        good = next((run for run in runs.values() if isinstance(run, ValidationResult)), None)
        if claim.roles == ("copy",) and good is not None and len(good.direct):
            yield _repair(good, any(part.role == "backup" for part in truth.planted.parts))


def _validated(model: "HFModel", heads: Any, settings: ValidateSettings) -> Runs:
    """For each ablation its validation, or why there is none."""
    try:
        return dict.fromkeys(ABLATIONS, validate(model, heads, settings))
    except ResultError as error:
        return dict.fromkeys(ABLATIONS, error)
    except SiteError:
        pass  # an ablation that changes nothing stops the others
    runs: dict[str, ValidationResult | Exception] = {}
    for name in ABLATIONS:  # each by itself, under settings that are the same but for that
        try:
            runs[name] = validate(model, heads, replace(settings, ablations=(name,)))
        except SiteError as error:
            runs[name] = error
    return runs


def _verdict(name: str, claim: Claim, test: str, *, runs: Runs) -> Row:
    right, why = expected(name, claim, test)
    row: Row = {
        "table": "claims", "claim": " + ".join(claim.roles) or FIRST,
        "test": test, "expected": right, "why": why,
    }  # fmt: skip
    # denoising puts back what noising by resample takes away
    run = runs["resample" if test == DENOISE else test]
    if test == DENOISE and isinstance(run, SiteError):
        run = next((r for r in runs.values() if isinstance(r, ValidationResult)), run)
    found = run if isinstance(run, Exception) else _finding(run, test)
    if isinstance(found, Exception):
        refused = isinstance(found, SiteError)
        verdict = "not applicable" if refused else "inconclusive"
        reason = f"{'refused' if refused else 'could not be measured'}: {found}"
        return row | {"verdict": verdict, "right": is_right(verdict, right), "reason": reason}
    assert isinstance(run, ValidationResult)
    e = found.effect
    return row | {
        "heads": " ".join(map(str, run.heads)), "verdict": found.verdict,
        "right": is_right(found.verdict, right), "reason": found.reason,
        "effect": e.effect, "excess": e.excess, "excess_low": e.excess_low,
        "excess_high": e.excess_high, "p": e.p, "p_holm": e.p_holm,
        "needles": e.n_clusters, "sets": e.n_draws, "scope": e.scope,
    }  # fmt: skip


def _finding(run: ValidationResult, test: str) -> "Finding | ResultError":
    """The verdict of a test in its family of two; why it could not be measured."""
    denoise = test == DENOISE
    names = run.settings["ablations"]
    ablation = test if not denoise else "resample" if "resample" in names else names[0]
    for finding in of_one_ablation(run, ablation).findings:
        if (finding.effect.direction == "denoising") == denoise:
            return finding
    return ResultError(run.missing()[test])


def of_one_ablation(run: ValidationResult, ablation: str) -> ValidationResult:
    """The part of a validation that its validation with a single ablation would be."""
    mine = run.sets["ablation"].isin((ablation, DENOISE))
    return replace(
        run,
        settings=run.settings | {"ablations": [ablation]},
        sets=run.sets[mine].reset_index(drop=True),
        values=run.values[mine.to_numpy()],
    )


def _repair(run: ValidationResult, backed_up: bool) -> Row:
    """Repair is seen where the interval of what is made good lies above the smallest effect."""
    frame = run.direct
    total, direct = frame["total"].to_numpy(float), frame["direct"].to_numpy(float)
    good = cluster_interval(total - direct, frame["needle"].to_numpy(), seed=run.settings["seed"])
    seen = good.low > run.settings["smallest"]
    return {
        "table": "repair", "head": str(run.heads[0]), "total": total.mean(),
        "direct": direct.mean(), "made_good": good.mean, "low": good.low, "high": good.high,
        "needles": good.n_clusters, "seen": seen, "expected": backed_up, "right": seen == backed_up,
    }  # fmt: skip
