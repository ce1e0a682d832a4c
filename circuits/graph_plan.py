"""Settings of a function-token run, and how its text is divided before a model reads a token.

One pass over the text counts tokens and documents. It tells which documents train dictionaries,
which go into the graph, and to which block each of those belongs. Blocks are stretches of whole
documents: parts of the run that are kept when it is interrupted, and the clusters of intervals.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Int

from circuits.edge_rules import parse_rule
from interp.errors import PromptError, UnknownNameError
from interp.sites import SITE_KINDS
from probes.beginnings import beginning
from probes.documents import Source, Window, stream_documents, windows
from probes.token_counts import TokenCounts, count_tokens

UNUSED, TRAINING = -2, -1
"""Roles of documents that are in no block."""
CONTROLS = ("none", "shuffled")


@dataclass(frozen=True)
class GraphSettings:
    """What to count, and how.

    Attributes:
        layers: where dictionaries are trained; a quarter, half and three quarters up if empty.
            Not used with `features`, which say where they belong.
        site, out_site: what a trained dictionary reads, and what it reconstructs (itself if
            empty): "mlp_in" and "mlp_out" train a transcoder.
        features: dictionaries to read (`probes.feature_files`); one is trained for each layer if
            empty.
        tokens: positions of the graph; 0 takes all of the text.
        train_tokens: positions whose activations train dictionaries, of documents of their own.
        d_dict, k, activation, steps, batch: of trained dictionaries, see `probes.feature_training`.
        seeds: dictionaries trained for each layer.
        control: "shuffled" trains and counts a dictionary of the model with shuffled weights too,
            on `control_tokens` positions.
        length: tokens of a window, in which a document is read.
        bos: see `probes.beginnings.BOS`.
        skip_first: positions at the beginning of each window that are read over, not counted.
        cut: share of all occurrences that function tokens make (the paper's: .40).
        rule: when a pair is an edge of the graph, see `circuits.edge_rules`.
        top: tokens of the cumulative table.
        blocks: into how many stretches the text is divided; intervals are over them.
        draws: random sets of content tokens beside the most frequent ones.
        field: of JSON lines, tables and data sets.
    """

    layers: tuple[int, ...] = ()
    site: str = "resid_post"
    out_site: str = ""
    features: tuple[str, ...] = ()
    tokens: int = 0
    train_tokens: int = 300_000
    d_dict: int = 4096
    k: int = 32
    activation: str = "batchtopk"
    steps: int = 400
    batch: int = 2048
    seeds: int = 1
    control: str = "none"
    control_tokens: int = 100_000
    length: int = 512
    bos: str = "auto"
    skip_first: int = 4
    cut: float = 0.40
    rule: str = "any"
    top: int = 10
    blocks: int = 24
    draws: int = 100
    field: str = "text"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Text:
    """What the first pass found.

    Attributes:
        counts: of all tokens of the text, whatever they are used for.
        roles: for each document TRAINING, UNUSED, or the number of its block.
        n_positions: positions that are counted, by document.
        digest: of all tokens; parts of a run on other text are refused.
    """

    counts: TokenCounts
    roles: Int[np.ndarray, " document"]
    n_positions: Int[np.ndarray, " document"]
    digest: str

    def size(self, *roles: int) -> int:
        """Positions of the documents of some roles; of all blocks where none is named."""
        chosen = np.isin(self.roles, roles) if roles else self.roles >= 0
        return int(self.n_positions[chosen].sum())

    @property
    def n_blocks(self) -> int:
        """Blocks that hold a document."""
        return int(self.roles.max()) + 1


def check_settings(settings: GraphSettings) -> None:
    """Refuse settings that no run could follow, before anything is loaded.

    Raises:
        PromptError, UnknownNameError: what is wrong, and what would do.
    """
    if settings.control not in CONTROLS:
        raise UnknownNameError("control", settings.control, CONTROLS)
    for kind in filter(None, (settings.site, settings.out_site)):
        if kind not in SITE_KINDS:
            raise UnknownNameError("site", kind, SITE_KINDS)
    parse_rule(settings.rule)
    if not 0 < settings.cut < 1:
        raise PromptError(f"--cut is a share of occurrences between 0 and 1, got {settings.cut}")
    least = {"length": settings.skip_first + 2, "blocks": 2, "top": 1, "seeds": 1, "draws": 20}
    least |= {"tokens": 0, "train_tokens": 1, "skip_first": 0, "steps": 1}
    for name, at_least in least.items():
        if getattr(settings, name) < at_least:
            raise PromptError(
                f"{name.replace('_', ' ')} must be {at_least} or more, got "
                f"{getattr(settings, name)}"
            )


def text_windows(tokenizer: Any, source: Source, settings: GraphSettings) -> Iterator[Window]:
    """All windows of the text, document by document."""
    texts = stream_documents(source, field=settings.field)
    bos = beginning(tokenizer, settings.bos)
    return windows(texts, tokenizer, length=settings.length, bos=bos)


def divide(
    tokenizer: Any,
    source: Source,
    settings: GraphSettings,
    *,
    n_vocab: int,
    progress: Callable[[int], None] | None = None,
) -> Text:
    """Read the text once and give each document its role.

    Raises:
        PromptError: no text, fewer tokens or documents than asked for, or a source that can be
            read only once.
    """
    if isinstance(source, Iterator):
        raise PromptError(
            "the text is read twice, and an iterator can be read once; give a list, a data set or "
            "files"
        )
    bos = beginning(tokenizer, settings.bos)
    sizes: list[int] = []
    digest = hashlib.sha256()
    found = count_tokens(
        _measured(text_windows(tokenizer, source, settings), settings, sizes, digest, progress),
        n_vocab,
        skip=() if bos is None else (bos,),
    )
    n_positions = np.array(sizes)
    roles = _roles(n_positions, settings)
    return Text(found, roles, n_positions, digest.hexdigest()[:16])


def divided(text: Text, settings: GraphSettings) -> Text:
    """The same text, read once, with roles as other settings ask for them.

    Raises:
        PromptError: fewer tokens or documents than asked for.
    """
    return replace(text, roles=_roles(text.n_positions, settings))


def _measured(
    found: Iterable[Window], settings: GraphSettings, sizes: list[int], digest: Any,
    progress: Callable[[int], None] | None,
) -> Iterator[Window]:  # fmt: skip
    """The windows themselves; positions by document and a digest of all tokens on the way."""
    done = 0
    for window in found:
        sizes += [0] * (window.document + 1 - len(sizes))
        sizes[window.document] += max(0, len(window.tokens) - settings.skip_first)
        digest.update(np.array([window.document, *window.tokens], np.int64).data)
        done += len(window.tokens)
        if progress is not None:
            progress(done)
        yield window


def _roles(n_positions: np.ndarray, settings: GraphSettings) -> np.ndarray:
    total = int(n_positions.sum())
    needed = 0 if settings.features else settings.train_tokens
    if total < needed + max(1, settings.tokens):
        raise PromptError(
            f"the text has {total:,} positions in {len(n_positions)} documents; "
            f"{needed:,} to train on and {max(1, settings.tokens):,} to count were asked for: "
            "give more text, or lower --train-tokens or --tokens"
        )
    number = np.arange(len(n_positions))
    share = needed / total
    # documents for training are spread evenly over the text
    training = np.floor((number + 1) * share) > np.floor(number * share)
    roles = np.where(training, TRAINING, UNUSED)
    rest = np.flatnonzero(~training)
    before = np.cumsum(n_positions[rest]) - n_positions[rest]
    rest = rest[before < settings.tokens] if settings.tokens else rest
    before = before[: len(rest)]
    wanted = int(before[-1] + n_positions[rest[-1]]) if len(rest) else 0
    # a text too short for a position, at the end, belongs to the last block
    block = np.minimum(before * settings.blocks / max(1, wanted), settings.blocks - 1).astype(int)
    _, roles[rest] = np.unique(block, return_inverse=True)
    if needed and not training.any() or len(np.unique(roles[rest])) < 2:
        raise PromptError(
            f"the text has {len(n_positions)} documents, too few to train on some and to divide "
            "the others into 2 blocks or more; give more files, or one text a line as .jsonl"
        )
    return roles


class Blocks:
    """Windows of the text block by block; going forward, no text is cut into windows twice."""

    def __init__(self, tokenizer: Any, corpus: Source, text: Text, settings: GraphSettings) -> None:
        self.text = text
        self.cut = partial(text_windows, tokenizer, corpus, settings)
        self._next = text.n_blocks
        self._found: Iterator[tuple[int, Iterator[Window]]] = iter(())

    def windows(self, block: int) -> Iterator[Window]:
        """The windows of a block, in order."""
        if block < self._next:
            wanted = (w for w in self.cut() if self.text.roles[w.document] >= 0)
            self._found = groupby(wanted, lambda w: int(self.text.roles[w.document]))
        self._next = block + 1
        return next(windows for found, windows in self._found if found == block)
