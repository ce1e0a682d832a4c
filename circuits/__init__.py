"""Claims and their tests: scores of heads with their uncertainty, and whether they are causes.

    model = interp.load("smollm2-135m")
    result = circuits.scan(model)
    circuits.validate(model, result).figure()

Names are looked up when used, so that importing the package imports no model library. No module
has the name of a function here: importing it would put itself in the function's place.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.binding_plan import BindSettings
    from circuits.binding_result import BindingResult
    from circuits.binding_run import binding
    from circuits.calibration import calibrate
    from circuits.calibration_result import CalibrationResult
    from circuits.circuit import CircuitSettings, find_circuit
    from circuits.circuit_result import CircuitResult
    from circuits.comparison import compare
    from circuits.crew.ray_cluster import Cluster
    from circuits.crew.ray_engine import run_on_ray
    from circuits.effect_plan import EffectSettings
    from circuits.effects_result import FeatureEffects
    from circuits.effects_run import feature_effects
    from circuits.free_edits import score_intervention
    from circuits.free_result import FreeEdits
    from circuits.graph_json import write_graph_json
    from circuits.graph_plan import GraphSettings
    from circuits.graph_result import FeatureGraph
    from circuits.graph_run import function_tokens
    from circuits.growth_plan import GrowthSettings
    from circuits.growth_result import GrowthResult
    from circuits.growth_run import feature_growth
    from circuits.head_sets import read_heads, write_heads
    from circuits.lens_heads import from_lens, to_lens
    from circuits.loss_plan import LossSettings
    from circuits.loss_result import LossResult
    from circuits.loss_run import loss_groups
    from circuits.patch_result import PatchResult
    from circuits.patching import PatchSettings, patch
    from circuits.plan import ScanSettings
    from circuits.reactivation_corpus import reactivation
    from circuits.reactivation_plan import ReactivationSettings
    from circuits.reactivation_prompt import trace_prompt
    from circuits.reactivation_result import ReactivationResult
    from circuits.retrieval import scan
    from circuits.scan_result import ScanResult
    from circuits.validation import validate
    from circuits.validation_plan import ValidateSettings
    from circuits.validation_result import ValidationResult
    from circuits.weight_circuits import direct_attribution, read_weights
    from circuits.weight_result import WeightCircuits

__all__ = [
    "BindSettings",
    "BindingResult",
    "CalibrationResult",
    "CircuitResult",
    "CircuitSettings",
    "Cluster",
    "EffectSettings",
    "FeatureEffects",
    "FeatureGraph",
    "FreeEdits",
    "GraphSettings",
    "GrowthResult",
    "GrowthSettings",
    "LossResult",
    "LossSettings",
    "PatchResult",
    "PatchSettings",
    "ReactivationResult",
    "ReactivationSettings",
    "ScanResult",
    "ScanSettings",
    "ValidateSettings",
    "ValidationResult",
    "WeightCircuits",
    "binding",
    "calibrate",
    "compare",
    "direct_attribution",
    "feature_effects",
    "feature_growth",
    "find_circuit",
    "from_lens",
    "function_tokens",
    "loss_groups",
    "patch",
    "reactivation",
    "read_heads",
    "read_weights",
    "run_on_ray",
    "scan",
    "score_intervention",
    "to_lens",
    "trace_prompt",
    "validate",
    "write_graph_json",
    "write_heads",
]

_HOME = {
    "BindSettings": "circuits.binding_plan",
    "BindingResult": "circuits.binding_result",
    "CalibrationResult": "circuits.calibration_result",
    "CircuitResult": "circuits.circuit_result",
    "CircuitSettings": "circuits.circuit",
    "Cluster": "circuits.crew.ray_cluster",
    "EffectSettings": "circuits.effect_plan",
    "FeatureEffects": "circuits.effects_result",
    "FeatureGraph": "circuits.graph_result",
    "FreeEdits": "circuits.free_result",
    "GraphSettings": "circuits.graph_plan",
    "GrowthResult": "circuits.growth_result",
    "GrowthSettings": "circuits.growth_plan",
    "LossResult": "circuits.loss_result",
    "LossSettings": "circuits.loss_plan",
    "PatchResult": "circuits.patch_result",
    "PatchSettings": "circuits.patching",
    "ReactivationResult": "circuits.reactivation_result",
    "ReactivationSettings": "circuits.reactivation_plan",
    "ScanResult": "circuits.scan_result",
    "ScanSettings": "circuits.plan",
    "ValidateSettings": "circuits.validation_plan",
    "ValidationResult": "circuits.validation_result",
    "WeightCircuits": "circuits.weight_result",
    "binding": "circuits.binding_run",
    "calibrate": "circuits.calibration",
    "compare": "circuits.comparison",
    "direct_attribution": "circuits.weight_circuits",
    "feature_effects": "circuits.effects_run",
    "feature_growth": "circuits.growth_run",
    "find_circuit": "circuits.circuit",
    "from_lens": "circuits.lens_heads",
    "function_tokens": "circuits.graph_run",
    "loss_groups": "circuits.loss_run",
    "patch": "circuits.patching",
    "reactivation": "circuits.reactivation_corpus",
    "read_heads": "circuits.head_sets",
    "read_weights": "circuits.weight_circuits",
    "run_on_ray": "circuits.crew.ray_engine",
    "scan": "circuits.retrieval",
    "score_intervention": "circuits.free_edits",
    "to_lens": "circuits.lens_heads",
    "trace_prompt": "circuits.reactivation_prompt",
    "validate": "circuits.validation",
    "write_graph_json": "circuits.graph_json",
    "write_heads": "circuits.head_sets",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'circuits' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
