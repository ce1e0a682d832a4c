"""What a function-token run runs: activations to train on, training, counting, and a judgement.

Layers above the deepest station are not run, and no logits are made but for the judgement. Windows
stand alone. Training and counting are timed as they are (`circuits.cost_dictionary`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from circuits.cost import Forward, Sizes, Suffix, extend
from circuits.cost_dictionary import DictionaryTimes
from circuits.graph_plan import TRAINING, GraphSettings, Text
from circuits.graph_run import QUALITY_WINDOWS, SPLICED_WINDOWS
from circuits.pricing import Phase, Price
from interp.errors import PromptError
from probes.activations import TOGETHER

if TYPE_CHECKING:
    from interp.backends.hf import HFModel


@dataclass(frozen=True, eq=False)
class TextSize:
    """How much text there is: tokens of each window that trains, and of each block's windows.

    `seconds` is what one pass over the text takes, which is read three times.
    """

    training: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    seconds: float = 0.0


def text_size(text: Text, settings: GraphSettings, *, seconds: float = 0.0) -> TextSize:
    """Windows of a text that was divided; `seconds` is how long that took."""

    def windows(role: int) -> tuple[int, ...]:
        sizes = text.n_positions[text.roles == role]
        return tuple(w for n in sizes for w in _windows(int(n), settings))

    return TextSize(windows(TRAINING), tuple(map(windows, range(text.n_blocks))), seconds)


def assumed_text(settings: GraphSettings) -> TextSize:
    """A text of as many positions as the settings ask for, in whole windows.

    Raises:
        PromptError: the settings take all of a text that is not named.
    """
    if settings.tokens < 1:
        raise PromptError("how much text is counted? give --tokens, or the text with --corpus")
    each = ceil(settings.tokens / settings.blocks)
    needed = 0 if settings.features else settings.train_tokens
    return TextSize(_windows(needed, settings), (_windows(each, settings),) * settings.blocks)


def _windows(n_positions: int, settings: GraphSettings) -> tuple[int, ...]:
    """Tokens of the windows that hold so many counted positions."""
    room = settings.length - settings.skip_first
    whole, rest = divmod(n_positions, room)
    tail = (rest + settings.skip_first,) if rest else ()
    return (settings.length,) * whole + tail


def price_graph(
    model: "HFModel", sizes: Sizes, settings: GraphSettings, text: TextSize, *,
    times: DictionaryTimes,
) -> Price:  # fmt: skip
    """Stations of the settings on so much text.

    Raises:
        SiteError: a layer that the model does not have.
    """
    from circuits.graph_stations import station_sites

    own = replace(settings, features=())
    sites = [site for pair in station_sites(model, own) for site in pair if site is not None]
    top = max(site.layer + (site.kind != "resid_pre") for site in sites)
    n_stations = len(settings.features) or len(station_sites(model, own)) * settings.seeds
    trained = not settings.features
    phases = _phases(sizes, settings, text, times, top=top, stations=n_stations, trained=trained)
    if settings.control == "shuffled":
        other = replace(own, tokens=settings.control_tokens,
                        train_tokens=settings.control_tokens, seeds=1)  # fmt: skip
        few = n_stations // settings.seeds if trained else n_stations
        phases += [
            replace(p, name=f"{p.name}, shuffled weights", stage=p.stage + 2)
            for p in _phases(sizes, other, assumed_text(other), times, top=top, stations=few,
                             trained=True)
        ]  # fmt: skip
    positions = sum(map(sum, text.blocks)) - settings.skip_first * sum(map(len, text.blocks))
    return Price(
        "graph", tuple(phases), 0,
        counts={
            "stations": n_stations, "layers run": top, "features": settings.d_dict,
            "positions": positions, "blocks": len(text.blocks),
            "tokens to train on": sum(text.training) if trained else 0,
            "training steps": settings.steps * n_stations if trained else 0,
        },
        notes=(
            "not in it: tables and fits of each dictionary (statistics of counts, seconds), and "
            "dead features that are revived from the 100th step on",
        ),
        held=_held(sizes, settings, text, stations=n_stations, trained=trained),
        unit="blocks of text",
    )  # fmt: skip


def _phases(
    sizes: Sizes, settings: GraphSettings, text: TextSize, times: DictionaryTimes, *, top: int,
    stations: int, trained: bool,
) -> list[Phase]:  # fmt: skip
    found = []
    if trained:
        read = tuple(_activations(sizes, text.training, top))
        found.append(Phase("activations to train on", read, seconds=text.seconds))
        found += [
            Phase("training", (), k, stage=1, seconds=settings.steps * times.step)
            for k in range(stations)
        ]
    judged = tuple(_judged(sizes, settings, text, top=top, stations=stations))
    found.append(Phase("judgement of the dictionaries", judged, seconds=text.seconds))
    for k, block in enumerate(text.blocks):
        work = tuple(_activations(sizes, block, top))
        found.append(
            Phase("counting", work, k, stage=2, seconds=sum(block) * stations * times.position)
        )
    return found


def _activations(sizes: Sizes, windows: Sequence[int], top: int) -> Iterable[Forward]:
    """Windows run up to a layer, some together."""
    for start in range(0, len(windows), TOGETHER):
        group = [Suffix(n, 0, logits=0) for n in windows[start : start + TOGETHER]]
        for one in extend(sizes, group):
            yield replace(one, layers=top)


def _judged(
    sizes: Sizes, settings: GraphSettings, text: TextSize, *, top: int, stations: int
) -> Iterable[Forward]:
    """Activations of the first windows; losses of a few: as they are, with a dictionary put in."""
    skip = settings.skip_first
    windows = [n for block in text.blocks for n in block if n > skip + 1][:QUALITY_WINDOWS]
    found = extend(sizes, [Suffix(n, 0, logits=0) for n in windows])
    yield from (replace(one, layers=top) for one in found)
    for n in windows[:SPLICED_WINDOWS]:
        row = Suffix(n, 0, logits=n - skip - 1, first=top - 1)
        alone = extend(sizes, [replace(row, first=0)])
        # as it is; with a reconstruction and with zeros; with the mean
        yield from [*alone, *extend(sizes, [row, row], shared=True), *alone] * stations


def _held(
    sizes: Sizes, settings: GraphSettings, text: TextSize, *, stations: int, trained: bool
) -> float:
    """Bytes of dictionaries in float32, of one in training with its moments, and of stored rows.

    Rows to train on lie in a file in half precision; as they are drawn at random, all of it comes
    into memory. A step holds pre-activations of a batch, and which of them are near the border.
    """
    weights = 4.0 * 2 * sizes.d_model * settings.d_dict
    if not trained:
        return weights * stations
    stored = 2.0 * sizes.d_model * sum(text.training)
    step = 2.0 * 4 * settings.batch * settings.d_dict
    return float(np.sum([weights * (stations - 1), 4 * weights, stored, step]))
