"""What the explorer shows: views and their panels, the one definition of all its forms.

The live app, the widget and the offline page are given these records as plain values and draw them
with the same code (`static/`); a panel is drawn by the function that bears its name there.
"""

from dataclasses import asdict, dataclass
from typing import Any

DRAWN = ("svg", "png", "csv")


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        name: of its drawing function.
        about: what it shows and how to read it, a line under its title.
        needs: what the runs must hold; `model` is a model that is attached.
        lacking: what is said where they do not, and what to do.
        wide: takes the whole width.
        exports: forms in which it can be taken away.
    """

    name: str
    title: str
    about: str
    needs: str
    lacking: str
    wide: bool = False
    exports: tuple[str, ...] = DRAWN


@dataclass(frozen=True)
class View:
    """Panels that belong together; offered where a run holds what `needs` names."""

    name: str
    title: str
    needs: str
    panels: tuple[Panel, ...]


NO_ATTENTION = (
    "This run keeps no attention rows. Scan again with this version, or attach the model: "
    "mnemoscope explore RUN --model NAME."
)
NO_SCORES = "None of these runs scores heads. Open a scan or a validation."

HEADS = View(
    "heads",
    "Heads",
    "scores",
    (
        Panel(
            "heads",
            "Heads",
            "Layer on y, head on x. Click a head, or move with the arrow keys; [ and ] go through "
            "the ranking, space ticks. Faint: below the threshold. Thin lines: heads that share "
            "keys and values.",
            "scores",
            NO_SCORES,
        ),
        Panel(
            "ranking",
            "Ranking",
            "The same heads as a table. Click a column to sort by it.",
            "scores",
            NO_SCORES,
        ),
        Panel(
            "grid",
            "Needle grid",
            "Questions answered, by length of context and depth of the needle, and where the "
            "chosen head fired. Click a cell to see its trial; a ring: its attention was kept.",
            "trials",
            "No needle trials in these runs. Open a scan.",
        ),
        Panel(
            "regions",
            "Attention by region",
            "Where each row of the chosen head looks: the question's last tokens, then one row for "
            "each answer token produced. A row sums to 1, less where a learned sink takes a share. "
            "Click one to see its tokens.",
            "attention",
            NO_ATTENTION,
        ),
        Panel(
            "tokens",
            "Tokens",
            "The darker, the more weight from the chosen row. Boxed: the needle asked for, dotted: "
            "other needles. ␣ is a space, ⏎ a new line. Long stretches without weight are folded.",
            "attention",
            NO_ATTENTION,
            wide=True,
        ),
        Panel(
            "keys",
            "Heaviest keys",
            "Weight, and what the key writes through this head towards the answer's logit (minus "
            "that of another value). Attention is not attribution: heavy keys may write nothing.",
            "attention",
            NO_ATTENTION,
        ),
        Panel(
            "pattern",
            "Map",
            "Max-pooled: each cell is the largest weight in it, so that a single token cannot "
            "vanish. Drag to zoom; what is kept is binned anew.",
            "attention",
            NO_ATTENTION,
        ),
        Panel(
            "whatif",
            "What if",
            "Ablate the ticked heads in the shown trial, beside random sets with as many heads in "
            "each layer.",
            "scores",
            NO_SCORES,
            wide=True,
        ),
    ),
)

COMPARE = View(
    "compare",
    "Compare",
    "two",
    (
        Panel(
            "difference",
            "Difference",
            "First minus second, head by head; the scale is centred at 0.",
            "two",
            "One set of scores alone has nothing to be compared with.",
        ),
        Panel(
            "scatter",
            "Head against head",
            "Each point is a head. On the dashed line both scores are the same.",
            "two",
            "One set of scores alone has nothing to be compared with.",
        ),
        Panel(
            "movers",
            "Largest differences",
            "Heads whose scores differ most. Whether that is more than chance: the intervals of "
            "both, and `mnemoscope compare`.",
            "two",
            "One set of scores alone has nothing to be compared with.",
            wide=True,
        ),
    ),
)

BINDING = View(
    "binding",
    "Binding",
    "binding",
    (
        Panel(
            "curve",
            "Where the patched vector points",
            "Share of patched questions answered with the group that each pointer names, by the "
            "group that the donor asked about. Shading: 95 % interval over entity sets.",
            "binding",
            "No binding run is open. Make one: mnemoscope bind MODEL.",
        ),
        Panel(
            "answers",
            "What was answered",
            "Patched questions by donor's group and group answered. Click a cell to see some.",
            "binding",
            "No binding run is open. Make one: mnemoscope bind MODEL.",
        ),
        Panel(
            "examples",
            "Examples",
            "Evaluations of the chosen cell, as recorded.",
            "binding",
            "No binding run is open. Make one: mnemoscope bind MODEL.",
            wide=True,
        ),
    ),
)

FEATURES = View(
    "features",
    "Features",
    "features",
    (
        Panel(
            "bipartite",
            "Tokens and features",
            "Left tokens, right features, a line where the token activates the feature. Click a "
            "node to expand it, search to find one.",
            "features",
            "No graph run is open. Make one: mnemoscope graph MODEL --corpus TEXT.",
            wide=True,
        ),
        Panel(
            "neighbours",
            "Neighbours",
            "Of the chosen node, by number of activations.",
            "features",
            "No graph run is open. Make one: mnemoscope graph MODEL --corpus TEXT.",
        ),
        Panel(
            "degrees",
            "Degree against frequency",
            "Frequent tokens reach more features whatever they are: read the chosen token against "
            "others of its frequency, not against all.",
            "features",
            "No graph run is open. Make one: mnemoscope graph MODEL --corpus TEXT.",
        ),
    ),
)

VIEWS: tuple[View, ...] = (HEADS, COMPARE, BINDING, FEATURES)
GUARD = (
    "Attention is not attribution, and a score is not a cause: see the intervals, and "
    "`mnemoscope validate`."
)


def as_plain() -> list[dict[str, Any]]:
    """The layout as plain values."""
    return [asdict(view) for view in VIEWS]
