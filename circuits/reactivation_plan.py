"""Settings of re-activation over a text, and what no run could follow."""

from dataclasses import dataclass

from circuits.reactivation_prompt import OBJECTIVES
from interp.errors import PromptError, UnknownNameError


@dataclass(frozen=True)
class ReactivationSettings:
    """What to measure.

    Attributes:
        tokens: positions of the index; 0 takes all of the text.
        shuffles: draws of shuffled labels for each window.
        densest: features that fire at a larger share of the graph's positions are left out.
        n_predictions: predictions whose features are attributed; 0 leaves that out.
        context: tokens before each.
        n_features: re-activated features of each whose heads are traced.
        n_exact: features of each that are ablated, the largest.
        objective: a row of `circuits.reactivation_prompt.OBJECTIVES`.
    """

    tokens: int = 200_000
    shuffles: int = 20
    densest: float = 0.1
    n_predictions: int = 48
    context: int = 96
    n_features: int = 32
    n_exact: int = 8
    objective: str = "logit"
    seed: int = 0


def check_reactivation(settings: ReactivationSettings) -> None:
    """Refuse settings that cannot be followed.

    Raises:
        UnknownNameError, PromptError: what is wrong, and what would do.
    """
    if settings.objective not in OBJECTIVES:
        raise UnknownNameError("objective", settings.objective, OBJECTIVES)
    least = {"tokens": 0, "shuffles": 1, "n_predictions": 0, "context": 8, "n_features": 1,
             "n_exact": 0}  # fmt: skip
    for name, at_least in least.items():
        if getattr(settings, name) < at_least:
            said = name.replace("_", " ")
            raise PromptError(f"{said} must be {at_least} or more, got {getattr(settings, name)}")
    if not 0 < settings.densest <= 1:
        raise PromptError(f"densest is a share of positions in (0, 1], got {settings.densest}")
