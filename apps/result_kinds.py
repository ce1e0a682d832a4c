"""Every kind of result that a run folder can hold, and how it is read, named and shown.

A kind more is a row more of `KINDS`. Its page module gives `title`, `answer` and `body` of a result
(with the row's prefix where a module shows two kinds); modules are named here and imported when a
result is read or shown, so that the table itself costs nothing.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from apps import questions
from interp.errors import ResultError
from interp.store import RESULT, Provenance, read_result


@dataclass(frozen=True)
class Kind:
    """A kind of result.

    Attributes:
        name: in `result.json`.
        word: for a reader, as in "a scan of heads".
        home: the class that reads its folder.
        page: the module with `title`, `answer` and `body`.
        asked: what the run wanted to know, a sentence or two.
        caveats: what no result of this kind says; shown on its page.
        prefix: of the functions of the page module.
        brief: the function that answers in two sentences.
        planted: the result is about models that were built for it, not about a model of the user.
    """

    name: str
    word: str
    home: str
    page: str
    asked: Callable[[Any], str]
    caveats: tuple[str, ...]
    prefix: str = ""
    brief: str = "answer"
    planted: bool = False

    def load(self, folder: str | Path) -> Any:
        """Read a run folder.

        Raises:
            ResultError: missing, unfinished, damaged, of another kind or version.
        """
        module, name = self.home.rsplit(".", 1)
        return getattr(import_module(module), name).load(folder)

    def title(self, result: Any) -> str:
        """The heading of its page."""
        return str(self._function("title")(result))

    def answer(self, result: Any) -> str:
        """What came out, in two sentences."""
        return str(self._function(self.brief)(result))

    def body(self, result: Any) -> Iterable[Any]:
        """Its page without the title: parts of `apps.html_parts`."""
        parts: Iterable[Any] = self._function("body")(result)
        return parts

    def _function(self, name: str) -> Callable[[Any], Any]:
        found: Callable = getattr(import_module(self.page), self.prefix + name)
        return found


def open_run(folder: str | Path) -> tuple[Kind, Any]:
    """The kind of a run folder, and its result.

    Raises:
        ResultError: no folder, no result in it, or one that this version cannot read.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ResultError(f"{folder} is a file; name the run folder that a command wrote")
    if not folder.is_dir():
        raise ResultError(f"{folder}: no such folder; name a run folder, such as runs/demo")
    name = _written(folder)
    if name not in KINDS:
        raise ResultError(
            f"{folder} holds a {name or 'foreign'} result; this version reads "
            f"{', '.join(KINDS)}; a newer version of mnemoscope may have written it"
        )
    return KINDS[name], KINDS[name].load(folder)


def kind_of(result: Any) -> Kind:
    """The kind of a result in memory.

    Raises:
        ResultError: it is no result of ours.
    """
    home = f"{type(result).__module__}.{type(result).__qualname__}"
    for kind in KINDS.values():
        if kind.home == home:
            return kind
    raise ResultError(f"{type(result).__name__} is no result; give a run folder or a result")


def models_of(result: Any) -> dict[str, Provenance]:
    """What a result was measured on, by name: one model, or a series of checkpoints."""
    made: Provenance = result.provenance
    return dict(getattr(result, "models", None) or {made.model: made})


def _written(folder: Path) -> str:
    """The kind that a folder's result says it is; empty where it does not say."""
    try:
        value = json.loads((folder / RESULT).read_text("utf-8"))
    except (OSError, ValueError):
        read_result(folder, kind="", version=0)  # says what is wrong with the file
        raise
    name = value.get("kind") if isinstance(value, dict) else ""
    return name if isinstance(name, str) else ""


# -- the table --------------------------------------------------------------------------------

PLANTED = (
    "planted models and worlds are small and clean; how often a verdict is right on a trained "
    "model is not known from them",
)
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "scan", "scan of heads", "circuits.scan_result.ScanResult", "apps.page", questions.scan,
            ("a score says where a head looks while the model answers, not that the answer rests "
             "on it; `mnemoscope validate` tests that",), brief="brief",
        ),
        Kind(
            "validation", "validation of heads", "circuits.validation_result.ValidationResult",
            "apps.validation_page", questions.validation,
            ("a verdict is about these heads, this scope and these prompts; that other heads could "
             "do the same is not excluded",), brief="brief",
        ),
        Kind(
            "patch", "patching", "circuits.patch_result.PatchResult", "apps.circuit_report",
            questions.patch,
            ("a patch shows where exchanged information changes the answer, not which computation "
             "made it; the head screen is a first-order estimate",), "patch_",
        ),
        Kind(
            "circuit", "circuit", "circuits.circuit_result.CircuitResult", "apps.circuit_report",
            questions.circuit,
            ("edges are of the heads that were asked for, on these prompts; a path that was not "
             "among the candidates was not tested",), "circuit_",
        ),
        Kind(
            "weight-circuits", "weights of heads", "circuits.weight_result.WeightCircuits",
            "apps.weights_page", questions.weights,
            ("weights say what a head could do, not what it does on any text; rotary embeddings "
             "and gains of query-key norms are left out",
             "trained matrices share directions that random ones do not: look at the other "
             "earlier heads, not at random matrices alone"),
        ),
        Kind(
            "free-edits", "intervention", "circuits.free_result.FreeEdits", "apps.free_page",
            questions.free_edits,
            ("a verdict is about this intervention on these heads and prompts; that it does only "
             "what its author meant is not checked",),
        ),
        Kind(
            "binding", "binding", "circuits.binding_result.BindingResult", "apps.binding_page",
            questions.binding,
            ("a mechanism is named for a task, a target and a number of groups; another wording "
             "may be answered another way",), brief="brief",
        ),
        Kind(
            "function-tokens", "token-feature graph", "circuits.graph_result.FeatureGraph",
            "apps.graph_page", questions.graph,
            ("a feature is a direction that a dictionary found, not a fact about the model: other "
             "dictionaries give other features; see the quality of each below",
             "coverage of any set of frequent tokens is high whichever tokens they are: compare "
             "with the blind null and with random content tokens, not with zero",
             "who activates a feature is not who uses it: see `mnemoscope effects` for what taking "
             "features away does"),
        ),
        Kind(
            "feature-effects", "features taken away", "circuits.effects_result.FeatureEffects",
            "apps.effects_page", questions.effects,
            ("an effect is of one position on one prediction; what a feature does elsewhere was "
             "not measured",
             "features are directions of one dictionary, and what it leaves unexplained stays in "
             "place"),
        ),
        Kind(
            "reactivation", "re-activation of features",
            "circuits.reactivation_result.ReactivationResult", "apps.reactivation_page",
            questions.reactivation,
            ("that a feature is active again says neither that it was fetched from its source nor "
             "that it is used; see the contributions of the heads, and the ablations",
             "gradient x activation is a first-order estimate; see its agreement with exact "
             "ablation",
             "a head's contribution is all that it copies from the source's position along the "
             "feature's encoder direction, not the feature alone"),
        ),
        Kind(
            "loss-groups", "losses by group", "circuits.loss_result.LossResult", "apps.loss_page",
            questions.losses,
            ("the group with the highest mean loss need not hold most of the loss: see both shares",
             "a target inside a word is foretold by the word's beginning: compare targets that "
             "begin a word",
             "a share of the loss is not a share of what moves the weights: see the gradient's, "
             "which are of the few windows asked for and have no interval",
             "documents held out of the n-gram model may have trained the models"), "loss_",
        ),
        Kind(
            "feature-growth", "growth of features", "circuits.growth_result.GrowthResult",
            "apps.loss_page", questions.growth,
            ("a count of features is at most the size of the dictionary, and moves with its "
             "sparsity: read every count with its L0, its share alive and its FVU",
             "dictionaries that were trained apart do not hold the same features"), "growth_",
        ),
        Kind(
            "calibration", "calibration of detectors and causal tests",
            "circuits.calibration_result.CalibrationResult", "apps.calibration_view",
            questions.calibration("detectors and causal tests of heads", "models"), PLANTED,
            planted=True,
        ),
        Kind(
            "binding-calibration", "calibration of the binding detector",
            "circuits.binding_calibration_result.BindingCalibration",
            "apps.binding_calibration_view",
            questions.calibration("the named binding mechanisms", "models"), PLANTED, planted=True,
        ),
        Kind(
            "graph-calibration", "calibration of the graph's verdicts",
            "circuits.graph_calibration.GraphCalibration", "apps.graph_calibration_view",
            questions.calibration("verdicts on token-feature graphs", "worlds"), PLANTED,
            planted=True,
        ),
    )
}  # fmt: skip
"""By the name in `result.json`."""
