"""Settings of a test that takes features away: which features, at which places, beside what."""

from dataclasses import dataclass

from interp.errors import PromptError, UnknownNameError

DISTANCES: dict[str, tuple[int, int]] = {"near": (1, 4), "middle": (5, 12), "far": (13, 32)}
"""Tokens between the place and the prediction, by name; both ends included."""
PLACES = ("function", "content", "random")
WHAT: dict[str, str] = {
    "all": "every feature active there",
    "top": "the most active feature there",
    "reactivated": "features active there that were active at a content token before",
}
"""What is taken away."""
CONTROLS = ("random direction", "matched features")


@dataclass(frozen=True)
class EffectSettings:
    """How features are tested.

    Attributes:
        what: a row of `WHAT`.
        n_trials: predictions, at most four of a document.
        context: tokens before the prediction; more than the farthest place needs.
        draws: controls of each kind.
    """

    what: str = "all"
    n_trials: int = 60
    context: int = 96
    draws: int = 20
    seed: int = 0


def check_effects(settings: EffectSettings) -> None:
    """Refuse settings that cannot be followed.

    Raises:
        UnknownNameError, PromptError: what is wrong, and what would do.
    """
    if settings.what not in WHAT:
        raise UnknownNameError("choice of features", settings.what, WHAT)
    farthest = DISTANCES["far"][1] + 8
    if settings.context < farthest or settings.draws < 19 or settings.n_trials < 8:
        raise PromptError(
            f"a test needs a context of {farthest} tokens, 19 draws and 8 trials or more; got "
            f"{settings.context}, {settings.draws} and {settings.n_trials}"
        )
