"""Settings of a count of features over checkpoints, and what no count could follow."""

from dataclasses import dataclass

from interp.errors import PromptError, UnknownNameError

CHOICES = {"separate": ("train", "none"), "control": ("shuffled", "none")}


@dataclass(frozen=True)
class GrowthSettings:
    """What to count.

    Attributes:
        layers: where; half way up if empty. site: what dictionaries read and reconstruct.
        tokens: positions that are counted, of every second document.
        train_tokens: positions that train dictionaries, of the other documents.
        separate: "train" a dictionary for each model too, or "none".
        control: "shuffled": also the last model with shuffled weights, or "none".
        d_dict, k, activation, steps, batch: see `probes.feature_training`.
        length, bos, skip_first, field: see `circuits.loss_plan`.
    """

    layers: tuple[int, ...] = ()
    site: str = "resid_post"
    tokens: int = 20_000
    train_tokens: int = 100_000
    separate: str = "train"
    control: str = "shuffled"
    d_dict: int = 2048
    k: int = 32
    activation: str = "batchtopk"
    steps: int = 300
    batch: int = 2048
    length: int = 512
    bos: str = "auto"
    skip_first: int = 4
    field: str = "text"
    seed: int = 0


def check_growth(settings: GrowthSettings) -> None:
    """Refuse settings that no run could follow.

    Raises:
        PromptError, UnknownNameError: what is wrong, and what would do.
    """
    for name, known in CHOICES.items():
        if getattr(settings, name) not in known:
            raise UnknownNameError(name, getattr(settings, name), known)
    least = {"tokens": 1, "train_tokens": 1, "length": settings.skip_first + 2, "skip_first": 0}
    for name, at_least in least.items():
        if getattr(settings, name) < at_least:
            raise PromptError(f"{name} must be {at_least} or more, got {getattr(settings, name)}")
