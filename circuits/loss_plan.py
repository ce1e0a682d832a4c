"""What a run over groups of losses measures: settings, and the text with everything known of it.

The text is divided by document: some train an n-gram model, the others are measured, in windows
that stand alone. Every measured position, a token and the one behind it, falls into one of four
groups by the classes of the two, and by whether the second begins a word.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.errors import PromptError, UnknownNameError
from probes.beginnings import BOS, beginning
from probes.documents import Source, Window, stream_documents, windows
from probes.ngrams import NGram
from probes.token_classes import CLASSES, INDEX, linguistic_classes
from probes.token_counts import TokenCounts, count_tokens, function_tokens

GROUPS = ("F->F", "F->C", "C->F", "C->C")
"""Class of a token -> class of the next, whose loss it is: function or content."""
TARGETS = ("word-initial", "word-internal")
"""Whether the next token goes on with a word (class "word-internal") or not."""
RULES = {
    "frequency": "the most frequent tokens that make `cut` of this very text (arXiv 2510.08203)",
    "linguistic": "tokens of the classes `function` of `probes.token_classes`",
}
"""What makes a token a function token."""
OVERLAP = 0.02
"""Share of measured windows that may stand in the n-gram model's own text, word for word."""


@dataclass(frozen=True)
class LossSettings:
    """What to measure.

    Attributes:
        classes: a name in `RULES`; cut, function: see there.
        order: of the n-gram model.
        train_share: share of the documents that train it where it has no text of its own.
        tokens: positions to measure; 0 takes all.
        length: tokens of a window; bos: see `probes.beginnings.BOS`.
        skip_first: positions at the beginning of a window that are not measured.
        gradients: windows whose gradients are shared out among the groups; 0 for none.
        blocks: stretches of text that are kept when a run is interrupted.
        n_draws: bootstrap draws over documents.
        field: of JSON lines, tables and data sets.
    """

    classes: str = "frequency"
    cut: float = 0.40
    function: tuple[str, ...] = ("function word", "punctuation")
    order: int = 2
    train_share: float = 0.5
    tokens: int = 0
    length: int = 512
    bos: str = "auto"
    skip_first: int = 4
    gradients: int = 0
    blocks: int = 8
    n_draws: int = 2000
    field: str = "text"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class LossText:
    """The measured windows and what is known of them without a model.

    Attributes:
        windows: documents are numbered from 0, and each is whole unless the measure is full.
        function, internal: of every token of the vocabulary.
        begin: first position of a window that is measured.
        sums: by document, group and target: "positions", and surprisal in nats by "unigram" and
            "ngram".
        about: numbers for the reader.
        tokenizer, digest: of the tokenizer's rules, and of every token that was read.
    """

    windows: tuple[Window, ...]
    function: Bool[np.ndarray, " token"]
    internal: Bool[np.ndarray, " token"]
    begin: int
    sums: dict[str, Float[np.ndarray, "document group target"]]
    about: dict[str, Any]
    tokenizer: str
    digest: str

    @property
    def n_documents(self) -> int:
        """Documents that are measured."""
        return self.windows[-1].document + 1


def check_settings(settings: LossSettings) -> None:
    """Refuse settings that no run could follow.

    Raises:
        PromptError, UnknownNameError: what is wrong, and what would do.
    """
    if settings.classes not in RULES:
        raise UnknownNameError("rule for classes", settings.classes, RULES)
    if settings.bos not in BOS:
        raise UnknownNameError("way to begin", settings.bos, BOS)
    for name in settings.function:
        if name not in CLASSES:
            raise UnknownNameError("class of tokens", name, CLASSES)
    for name in ("cut", "train_share"):
        if not 0 < getattr(settings, name) < 1:
            raise PromptError(f"{name} is a share between 0 and 1, got {getattr(settings, name)}")
    least = {"order": 1, "length": settings.skip_first + 3, "blocks": 1, "n_draws": 20}
    for name, at_least in (least | dict.fromkeys(("tokens", "skip_first", "gradients"), 0)).items():
        if getattr(settings, name) < at_least:
            raise PromptError(f"{name} must be {at_least} or more, got {getattr(settings, name)}")


def read_text(
    model: Any, corpus: Source, settings: LossSettings, *, baseline: Source | None = None
) -> LossText:
    """Count the text, divide it, train the n-gram model, and add up what it gives.

    Args:
        model: whose tokenizer and vocabulary are used.
        baseline: text that trains the n-gram model; a share of the corpus if None.

    Raises:
        PromptError: no text, too few documents or positions, text that can be read only once, or a
            baseline that holds what is measured.
    """
    if isinstance(corpus, Iterator):
        raise PromptError("the text is read twice, an iterator only once; give a list or files")
    tokenizer, n_vocab = model.tokenizer, model.spec.d_vocab
    bos = beginning(tokenizer, settings.bos)
    begin = max(settings.skip_first, int(bos is not None))
    digest = hashlib.sha256()
    sizes: list[int] = []
    counts = count_tokens(
        _noted(_windows(tokenizer, corpus, settings), begin, digest, sizes),
        n_vocab,
        skip=() if bos is None else (bos,),
    )
    training = _training(len(sizes), 0.0 if baseline is not None else settings.train_share)
    measured: list[Window] = []
    apart = _apart(_windows(tokenizer, corpus, settings), training, measured)
    if baseline is None:
        ngram = NGram.fit(apart, n_vocab, settings.order, bos=bos)
    else:
        assert not list(apart)
        known = {w.tokens for w in measured if len(w.tokens) > settings.skip_first + 2}
        own = _noted(_windows(tokenizer, baseline, settings), begin, digest, [])
        ngram = NGram.fit(_new(own, known), n_vocab, settings.order, bos=bos)
    kept = _first(measured, begin, settings.tokens)
    function, internal = _classes(tokenizer, counts, settings)
    sums = _baseline(kept, function, internal, begin, ngram)
    about = {
        "tokens": counts.n_tokens, "documents": len(sizes),
        "ngram_documents": int(training.sum()) if baseline is None else "text of its own",
        "ngram_tokens": int(ngram.tables[0].total.sum()), "order": ngram.order,
        "discounts": [round(t.discount, 3) for t in ngram.tables],
        "measured_documents": kept[-1].document + 1, "windows": len(kept),
        "positions": int(sums["positions"].sum()), "function_tokens": int(function.sum()),
        "function_share": float(counts.shares[function].sum()),
    }  # fmt: skip
    return LossText(tuple(kept), function, internal, begin, sums, about,
                    model.source.tokenizer_hash, digest.hexdigest()[:16])  # fmt: skip


def cells(
    tokens: Int[np.ndarray, " pos"],
    function: Bool[np.ndarray, " token"],
    internal: Bool[np.ndarray, " token"],
    *,
    begin: int,
) -> Int[np.ndarray, " measured"]:
    """Group and target of each position from `begin` on: 2 x group + target."""
    now, then = tokens[begin:-1], tokens[begin + 1 :]
    group = 2 * ~function[now] + 1 * ~function[then]
    return 2 * group + internal[then]


def add_up(
    values: Float[np.ndarray, " measured"], cell: Int[np.ndarray, " measured"]
) -> Float[np.ndarray, "group target"]:
    """Sum of values in each group and target."""
    n = len(GROUPS) * len(TARGETS)
    return np.bincount(cell, values, minlength=n).reshape(len(GROUPS), len(TARGETS))


# -- helpers ----------------------------------------------------------------------------------


def _windows(tokenizer: Any, source: Source, settings: LossSettings) -> Iterator[Window]:
    texts = stream_documents(source, field=settings.field)
    bos = beginning(tokenizer, settings.bos)
    return windows(texts, tokenizer, length=settings.length, bos=bos)


def _noted(found: Iterator[Window], begin: int, digest: Any, sizes: list[int]) -> Iterator[Window]:
    """The windows; measurable positions by document, and a digest of all tokens, on the way."""
    for window in found:
        sizes += [0] * (window.document + 1 - len(sizes))
        sizes[window.document] += max(0, len(window.tokens) - begin - 1)
        digest.update(np.array([window.document, *window.tokens], np.int64).data)
        yield window


def _new(found: Iterator[Window], known: set[tuple[int, ...]]) -> Iterator[Window]:
    """The windows; refused at the end if more than a few are measured ones: no fair baseline."""
    met = set()
    for window in found:
        if window.tokens in known:
            met.add(window.tokens)
        yield window
    if len(met) > OVERLAP * len(known):
        raise PromptError(
            f"{len(met):,} of {len(known):,} measured windows are in the text of the n-gram model "
            "too, which would know them by heart; take these documents out of one of the two"
        )


def _training(n_documents: int, share: float) -> Bool[np.ndarray, " document"]:
    """Which documents train the n-gram model: spread evenly over the text."""
    number = np.arange(n_documents)
    training = np.floor((number + 1) * share) > np.floor(number * share)
    if (~training).sum() < 2 or (share and not training.any()):
        raise PromptError(
            f"the text has {n_documents} documents, too few: intervals need 2 that are measured"
            f"{' and one that trains the n-gram model' if share else ''}; give more files, or one "
            "text a line as .jsonl"
        )
    return training


def _apart(
    found: Iterator[Window], training: Bool[np.ndarray, " document"], measured: list[Window]
) -> Iterator[Window]:
    """Windows that train; the others are put into `measured`, their documents numbered anew."""
    number = np.cumsum(~training) - 1
    for window in found:
        if training[window.document]:
            yield window
        else:
            measured.append(replace(window, document=int(number[window.document])))


def _first(measured: list[Window], begin: int, wanted: int) -> list[Window]:
    """The first windows that hold the wanted number of positions, of two documents at least."""
    sizes = np.array([max(0, len(w.tokens) - begin - 1) for w in measured])
    before = np.cumsum(sizes) - sizes
    use = (sizes > 0) & ((before < wanted) if wanted else True)
    kept = [w for w, used in zip(measured, use, strict=True) if used]
    documents = sorted({w.document for w in kept})
    total = int(sizes[use].sum())
    if len(documents) < 2 or total < wanted:
        raise PromptError(
            f"{total:,} positions in {len(documents)} documents can be measured, {max(1, wanted):,}"
            " in 2 or more are needed; give more text, or ask for other tokens"
        )
    number = {document: i for i, document in enumerate(documents)}
    return [replace(w, document=number[w.document]) for w in kept]


def _classes(
    tokenizer: Any, counts: TokenCounts, settings: LossSettings
) -> tuple[Bool[np.ndarray, " token"], Bool[np.ndarray, " token"]]:
    n_vocab = len(counts.occurrences)
    kinds = linguistic_classes(tokenizer, n_vocab=n_vocab)
    function = np.isin(kinds, [INDEX[name] for name in settings.function])
    if settings.classes == "frequency":
        function = np.isin(np.arange(n_vocab), function_tokens(counts, settings.cut))
    return function, kinds == INDEX["word-internal"]


def _baseline(
    kept: list[Window], function: np.ndarray, internal: np.ndarray, begin: int, ngram: NGram
) -> dict[str, Float[np.ndarray, "document group target"]]:
    shape = (kept[-1].document + 1, len(GROUPS), len(TARGETS))
    sums = {name: np.zeros(shape) for name in ("positions", "unigram", "ngram")}
    for window in kept:
        tokens = np.array(window.tokens, np.int64)
        cell = cells(tokens, function, internal, begin=begin)
        found = {
            "positions": np.ones(len(tokens)),
            "unigram": ngram.surprisal(tokens, 1),
            "ngram": ngram.surprisal(tokens),
        }
        for name, values in found.items():
            sums[name][window.document] += add_up(values[begin + 1 :], cell)
    return sums
