"""The layer at which the last token holds a pointer, and the one from which it holds the answer.

Both come from a sweep over all layers on prompts of their own. In the design with an absent answer
a pointer leads nowhere, while a finished answer is said: where that begins, the main design shows
"reflexive" for what is but a copied word (arXiv 2510.06182, section 3.4).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from circuits.binding_labels import LABELS
from circuits.binding_study import SWEEP, Records

COPIED_MOST = 0.1
"""Share of copied answers up to which a layer counts as free of them."""
TAKEN_OVER = 0.5
"""Share from which the finished answer has taken over."""
MOVED_LEAST = 0.5
"""Share of answers that a patch must change for a layer to hold a pointer."""


@dataclass(frozen=True)
class LayerChoice:
    """Where to exchange the last token's vector.

    Attributes:
        layer: the residual entering it is exchanged; None where no layer will do.
        takeover: first layer that the finished answer enters; None where it was never seen.
        reason: why no layer will do, or how the layer was chosen.
    """

    layer: int | None
    takeover: int | None
    reason: str


def choose_layer(records: Records) -> LayerChoice:
    """The last layer before the finished answer takes over; the rule is fixed, see the constants.

    Of the layers before the take-over, the last one with at most `COPIED_MOST` copied answers,
    provided that patching it changes at least `MOVED_LEAST` of the answers in the main design.
    """
    curve = sweep_curve(records)
    copied = curve["copied"].to_numpy()
    layers = curve["layer"].to_numpy(int)
    over = np.flatnonzero(copied >= TAKEN_OVER)
    takeover = int(layers[over[0]]) if len(over) else None
    before = [k for k in range(len(layers)) if takeover is None or layers[k] < takeover]
    free = [k for k in before if copied[k] <= COPIED_MOST]
    if takeover is None:
        return LayerChoice(None, None, "the finished answer is never seen, at no layer")
    if not free:
        return LayerChoice(None, takeover, "answers are copied at every layer")
    last, moved = free[-1], 1 - curve["no_effect"].to_numpy()[free[-1]]
    if moved < MOVED_LEAST:
        return LayerChoice(
            None, takeover,
            f"entering layer {layers[last]}, the last without copied answers, a patch changes "
            f"{moved:.0%} of the answers: no pointer stands there before the answer does",
        )  # fmt: skip
    return LayerChoice(
        int(layers[last]), takeover,
        f"the last layer with at most {COPIED_MOST:.0%} copied answers before they take over "
        f"entering layer {takeover}",
    )  # fmt: skip


def sweep_curve(records: Records) -> pd.DataFrame:
    """By layer: share of every label in the main design, and `copied` in that of absent answers."""
    rows = records.of(SWEEP).rows
    out = []
    for layer, part in rows.groupby("layer", sort=True):
        main = part[part["design"] == "main"]["label"]
        absent = part[part["design"] == "absent_answer"]["label"]
        found = {name: float((main == name).mean()) for name in LABELS}
        out.append({
            "layer": int(str(layer)), **found, "copied": float((absent == "copied").mean()),
            "n_main": len(main), "n_absent": len(absent),
        })  # fmt: skip
    return pd.DataFrame(out)
