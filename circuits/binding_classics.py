"""The older measurements of binding, one a row, on the same prompts as the pointers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from circuits.binding_ids import factorizability, id_swaps
from circuits.binding_knockout import freezing, knockout, lookback
from circuits.binding_subspace import ordering_steps, subspaces
from circuits.competence import Ready
from interp.errors import PromptError, ResultError, UnknownNameError

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Classic:
    """A measurement.

    Attributes:
        measure: `f(model, ready, *, seed)`, or `f(model, ready, layer, *, seed)` where `at_layer`.
        title: what it asks.
        source: where it comes from.
        at_layer: whether it acts at the layer that carries the pointer.
    """

    measure: Callable[..., dict[str, Any]]
    title: str
    source: str
    at_layer: bool = False


CLASSICS: dict[str, Classic] = {
    "knockout": Classic(
        knockout, "From which layer on may the last token not look at the answer?",
        "Prakash et al. 2024, arXiv 2402.14811",
    ),
    "lookback": Classic(
        lookback, "At which layers does the last token carry a pointer, and where the word itself?",
        "Prakash et al. 2025, arXiv 2505.14685",
    ),
    "freezing": Classic(
        freezing, "Between which layers does the last token learn of the question's entities?",
        "Prakash et al. 2025, arXiv 2505.14685",
    ),
    "id_swaps": Classic(
        id_swaps, "Do entities trade their groups with differences of means?",
        "Feng and Steinhardt 2024, arXiv 2310.17191",
    ),
    "factorizability": Classic(
        factorizability, "Does a word that is moved to another context keep its group?",
        "Feng and Steinhardt 2024, arXiv 2310.17191",
    ),
    "ordering_steps": Classic(
        ordering_steps, "Do steps along one direction move a word to the next group?",
        "Dai, Heinzerling and Inui 2024, arXiv 2409.05448",
    ),
    "subspaces": Classic(
        subspaces, "In how few directions does the pointer stand?",
        "Prakash et al. 2025, arXiv 2505.14685", at_layer=True,
    ),
}  # fmt: skip
"""The measurements, by name; in the order in which they are shown."""


def run_classics(
    model: "HFModel", ready: Ready, layer: int, *, seed: int = 0,
    names: Sequence[str] = tuple(CLASSICS), progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Each measurement's result by name, with its `title` and `source`; plain values only.

    One that cannot be made on these prompts holds its `reason`.

    Args:
        layer: the residual that enters it carries the pointer at the last token.
        progress: called before each with how many are done, how many there are, and its name.

    Raises:
        UnknownNameError: no such measurement.
    """
    for name in names:
        if name not in CLASSICS:
            raise UnknownNameError("binding measurement", name, CLASSICS)
    out = {}
    for done, name in enumerate(names):
        if progress is not None:
            progress(done, len(names), name)
        classic = CLASSICS[name]
        at = (layer,) if classic.at_layer else ()
        try:
            found = classic.measure(model, ready, *at, seed=seed)
        except (PromptError, ResultError) as error:  # one that cannot be made spoils no other
            found = {"reason": str(error)}
        out[name] = {"title": classic.title, "source": classic.source, **found}
    return out
