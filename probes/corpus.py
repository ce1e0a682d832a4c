"""Texts for haystacks: ours or the user's, read as UTF-8 and checked for verbatim repeats.

A head that copies is rewarded by text that repeats itself: half of the haystack published with
arXiv 2404.15574 is an exact copy of its other half. So repetition is measured, and reported.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from interp.errors import PromptError

REPEAT_LIMIT = 0.02  # share of repeated windows above which a text is reported


@dataclass(frozen=True)
class Document:
    """A text and the name that messages and results give it."""

    name: str
    text: str


@dataclass(frozen=True)
class Repetition:
    """Share in [0, 1] of repeated windows, per document and over all; `warning` if above limit."""

    shares: tuple[tuple[str, float], ...]
    total: float
    limit: float
    warning: str | None


def load_text(paths: str | Path | Iterable[str | Path] | None = None) -> list[Document]:
    """Read UTF-8 texts: ours by default, else files, folders (*.txt, *.md) and glob patterns.

    Raises PromptError, naming the file, for one that is missing, empty, binary or not UTF-8.
    """
    if paths is None:
        folder = resources.files("probes") / "data" / "texts"
        ours = sorted(folder.iterdir(), key=lambda file: file.name)
        return [Document(f.name, f.read_text("utf-8")) for f in ours if f.name.endswith(".txt")]
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise PromptError("no haystack file was given; name a UTF-8 text file, folder or pattern")
    files = list(dict.fromkeys(file for one in given for file in expand_paths(Path(one))))
    texts = [_read(file) for file in files]
    short = [file.name for file in files]
    names = [file.name if short.count(file.name) == 1 else str(file) for file in files]
    return [Document(name, text) for name, text in zip(names, texts, strict=True)]


def expand_paths(path: Path, *, suffixes: Sequence[str] = (".txt", ".md")) -> list[Path]:
    """The file itself, a folder's files of these suffixes, or those that a pattern matches; sorted.

    Raises:
        PromptError: no such file, an empty folder, or a pattern that matches nothing.
    """
    if path.is_dir():
        found = sorted(f for f in path.rglob("*") if f.suffix.lower() in suffixes)
        if not found:
            kinds = " or ".join(suffixes)
            raise PromptError(f"folder {path} holds no {kinds} file; name the files themselves")
        return found
    if path.exists():
        return [path]
    if any(mark in str(path) for mark in "*?["):
        base = Path(path.anchor)
        found = sorted(f for f in base.glob(str(path.relative_to(base))) if f.is_file())
        if found:
            return found
        raise PromptError(f"no file matches {path}; check the pattern, or name a file or folder")
    raise PromptError(f"file {path} does not exist; name a UTF-8 text file or a folder")


def repetition(text: str, *, window: int = 80) -> float:
    """Share in [0, 1] of `window`-character windows that repeat an earlier one exactly."""
    return check_repetition([Document("text", text)], window=window).total


def check_repetition(
    docs: Sequence[Document], limit: float = REPEAT_LIMIT, *, window: int = 80
) -> Repetition:
    """Measure verbatim repeats within and between documents; a window lies in one document.

    The default limit of 2 % is several times what clean prose shows (our own texts: under 0.5 %,
    refrains of verse included) and far below the published haystack (45-49 %).
    """
    repeats = _repeats([doc.text for doc in docs], window)
    shares = tuple(
        (doc.name, float(mask.mean()) if mask.size else 0.0)
        for doc, mask in zip(docs, repeats, strict=True)
    )
    everything = np.concatenate([np.zeros(0, bool), *repeats])
    total = float(everything.mean()) if everything.size else 0.0
    worst = [f"{name} {share:.1%}" for name, share in shares if share > limit]
    warning = None
    if worst:
        warning = (
            f"the haystack repeats itself: {', '.join(worst)} of the {window}-character windows "
            f"occur earlier word for word (limit {limit:.1%}); copying heads then also find "
            "copies that are no needle: remove the duplicates or use other text"
        )
    return Repetition(shares, total, limit, warning)


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror}; check its permissions") from None
    if b"\0" in data:
        raise PromptError(f"{path} is a binary file; a haystack must be plain UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 and try again"
        ) from None
    if not text.strip():
        raise PromptError(f"{path} is empty; a haystack needs text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _repeats(texts: list[str], window: int) -> list[np.ndarray]:
    """Per text, for each window: does it repeat one before it, in this text or an earlier one?

    A 64-bit polynomial hash finds the candidates, and the characters themselves decide.
    """
    if window < 1:
        raise PromptError(f"a window of {window} characters cannot be compared; give 1 or more")
    joined = "".join(texts)
    starts = np.cumsum([0, *map(len, texts)])
    valid = [np.arange(a, max(a, b - window + 1)) for a, b in itertools.pairwise(starts)]
    where = np.concatenate([np.zeros(0, np.intp), *valid])
    hashes = _window_hashes(joined, window)[where]
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    earlier = where[first][inverse]
    repeat = earlier < where
    for i in np.flatnonzero(repeat):
        a, b = int(earlier[i]), int(where[i])
        repeat[i] = joined[a : a + window] == joined[b : b + window]
    return np.split(repeat, np.cumsum([len(v) for v in valid])[:-1]) if valid else []


def _window_hashes(text: str, window: int) -> np.ndarray:
    """Polynomial hash modulo 2**64 of every window, built by doubling: log2(window) passes."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    codes = (codes + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    codes ^= codes >> np.uint64(29)
    hashes, done, base = np.zeros(len(codes) + 1, np.uint64), 0, 0x100000001B3
    for bit in f"{window:b}":
        shifted = hashes[done:] if done else hashes
        power = np.uint64(pow(base, done, 1 << 64))
        hashes, done = hashes[: len(shifted)] * power + shifted, 2 * done
        if bit == "1":
            tail = codes[done:]
            hashes, done = hashes[: len(tail)] * np.uint64(base) + tail, done + 1
    return hashes
