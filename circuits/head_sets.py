"""Head lists as a currency: read what other tools write, write one file that they can read.

Read: our scan folders and head-set files; score files of Wu et al. 2024, `{"5-3": [scores]}`,
which RHP and LOCOS share; QRHead's YAML (`attn_head_set: "13-18,8-11"`, also `10_3`) and its
detection output `[["13-18", 0.4], ...]`; DuoAttention's TSV of gates; text such as "L5H3,7-1".
A DuoAttention column is a key-value head: all query heads that read it get its gate, which makes
ties, and a cut through ties is told in `source`. Our file is JSON:

    {"kind": "heads", "schema": 1, "model": "...", "heads": ["L5H3", ...], "scores": [[...], ...]}

heads ranked best first; `scores` is null or [layer, head] with null where a head has none.
"""

import json
import operator
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from circuits.published import read_scores
from circuits.scan_result import ScanResult
from circuits.uncertainty import top as best
from interp.errors import ResultError, SiteError
from interp.sites import Head
from interp.spec import ModelSpec
from interp.store import cannot_write, write_json

KIND, SCHEMA = "heads", 1
FORMS = (
    "expected a scan's run folder, JSON (a head-set file, scores by layer-head, a list), QRHead "
    "YAML, DuoAttention .tsv, .txt, or heads such as L5H3,L7H1"
)
KEYS = ("attn_head_set", "head_list", "head_set", "heads", "retrieval_heads")

_PAIR = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)")
_DECIMAL = re.compile(r"\d+\.\d+")


@dataclass(frozen=True, eq=False)
class HeadSet:
    """Heads, where they come from, and their scores where the source has them.

    Attributes:
        heads: ranked, best first.
        scores: `[layer, head]`, NaN where a head has none; None for a mere list.
        source: one sentence for a reader of the result.
    """

    heads: tuple[Head, ...]
    scores: Float[np.ndarray, "layer head"] | None
    source: str
    kind: Literal["scan", "json", "yaml", "tsv", "text"]


def read_heads(
    ref: str | Path | Sequence[Any],
    *,
    top: int | None = None,
    n_groups: int | None = None,
    n_heads: int | None = None,
) -> HeadSet:
    """Read a head list from a run folder, a file, a text or a sequence; keep the first `top`.

    Text that reads as heads is heads, even where a file has that name; write `./5-3` for the file.

    Args:
        ref: a path, a text, or a sequence of heads in any form that `Head.parse` takes.
        top: how many to keep, all when None.
        n_groups: query heads to a key-value head of the model, for a DuoAttention table.
        n_heads: query heads to a layer; a table that has as many columns is not expanded.

    Raises:
        ResultError: nothing found, unreadable, a head twice, or fewer heads than `top`.
    """
    if isinstance(ref, str):
        found = _from_words(ref, n_groups, n_heads)
    elif isinstance(ref, Path):
        found = _from_path(ref, n_groups, n_heads)
    else:
        found = _from_list(ref)
    _distinct(found.heads, found.source)
    return found if top is None else _cut(found, top)


def write_heads(
    path: str | Path,
    heads: Sequence[Head],
    scores: Float[np.ndarray, "layer head"] | None = None,
    *,
    model: str,
) -> Path:
    """Write a head-set file, whole or not at all; `read_heads` returns the same heads and scores.

    Raises:
        ResultError: no heads, a head twice, or a place that cannot be written to.
    """
    path = Path(path)
    _distinct(heads, str(path))
    value = {
        "kind": KIND, "schema": SCHEMA, "model": model, "heads": [str(h) for h in heads],
        "scores": None if scores is None else _nulls(scores),
    }  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".heads-", dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            write_json(fresh, value)
            fresh.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    return path


def check_heads(heads: Sequence[Head], spec: ModelSpec) -> None:
    """Refuse a head set that the model cannot run.

    Raises:
        SiteError: the model has no such head, or its layer has no attention rows.
        ResultError: no heads, or one twice.
    """
    _distinct(heads, "the head set")
    for head in heads:
        spec.check_head(head)


# -- where from -------------------------------------------------------------------------------


def _from_words(ref: str, n_groups: int | None, n_heads: int | None) -> HeadSet:
    try:
        return HeadSet(_in_text(ref), None, f"given as {ref}", "text")
    except SiteError as error:
        why = error
    path = Path(ref).expanduser()
    try:
        exists = bool(ref.strip()) and path.exists()
    except OSError:  # a text too long for a file name
        exists = False
    if not exists:
        raise ResultError(f"no file is called so, and {why}; {FORMS}")
    return _from_path(path, n_groups, n_heads)


def _from_path(path: Path, n_groups: int | None, n_heads: int | None) -> HeadSet:
    if path.is_dir():
        return _from_scan(path)
    kind = path.suffix.lower()
    if kind == ".json":
        return _from_json(path)
    if kind in (".yaml", ".yml"):
        return _from_yaml(path)
    if kind == ".tsv":
        return _from_table(path, n_groups, n_heads)
    if kind == ".txt":
        return HeadSet(_must(path, _read(path)), None, f"listed in {path}", "text")
    raise ResultError(f"{path} is of no known kind; {FORMS}")


def _from_list(heads: Sequence[Any]) -> HeadSet:
    try:
        return HeadSet(tuple(map(_head, heads)), None, "given as a list", "text")
    except SiteError as error:
        raise ResultError(f"a list of heads: {error}") from None


def _from_scan(folder: Path) -> HeadSet:
    result = ScanResult.load(folder)
    source = f"scan of {result.provenance.model} in {folder}, ranked by copy score"
    return _ranked(result.mean("copy"), source, "scan")


def _from_json(path: Path) -> HeadSet:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise ResultError(f"{path} cannot be read as JSON: {error}") from None
    if isinstance(value, dict) and value.get("kind") == KIND:
        return _from_own(path, value)
    if isinstance(value, dict) and any(map(_found, value)):
        return _ranked(read_scores(path), f"score file {path}, ranked by mean score", "json")
    if isinstance(value, list) and value and all(_is_scored(item) for item in value):
        scores = _spread([(_must(path, [name])[0], float(score)) for name, score in value])
        return _ranked(scores, f"score list {path}, ranked by score", "json")
    return _searched(path, value, "json")


def _from_yaml(path: Path) -> HeadSet:
    import yaml

    try:
        # every scalar stays a text: YAML would read 5.10 as 5.1 and 10_3 as 103
        value = yaml.load(_read(path), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise ResultError(f"{path} cannot be read as YAML: {why}") from None
    return _searched(path, value, "yaml")


def _from_own(path: Path, value: dict[str, Any]) -> HeadSet:
    if value.get("schema") != SCHEMA:
        raise ResultError(
            f"{path} is a head-set file of schema {value.get('schema')}, this version reads "
            f"{SCHEMA}; write it again, or use the version that wrote it"
        )
    heads, scores = _must(path, value.get("heads")), value.get("scores")
    array = None if scores is None else _matrix(scores)
    if array is not None and not all(_inside(head, array) for head in heads):
        raise ResultError(f"{path}: scores must be null or [layer, head]; write the file again")
    return HeadSet(heads, array, f"head-set file {path} for {value.get('model')}", "json")


def _from_table(path: Path, n_groups: int | None, n_heads: int | None) -> HeadSet:
    gates = _matrix([line.split() for line in _read(path).splitlines() if line.strip()])
    if not gates.size or not np.isfinite(gates).all():
        raise ResultError(f"{path}: expected a table of gates, a row a layer, a column a KV head")
    columns = gates.shape[1]
    groups = 1 if columns == n_heads else n_groups
    if groups is None:
        raise ResultError(
            f"{path} has {columns} columns, one a key-value head; give n_groups, the query heads "
            "to each (1 without grouped-query attention)"
        )
    if n_heads is not None and columns * groups != n_heads:
        raise ResultError(
            f"{path} has {columns} columns, which {groups} query heads to each do not make the "
            f"model's {n_heads} heads; it is for another model"
        )
    source = f"DuoAttention gates {path}, each for {groups} query heads, ranked by gate"
    return _ranked(np.repeat(gates, groups, axis=1), source, "tsv")


# -- finding heads ----------------------------------------------------------------------------


def _searched(path: Path, value: Any, kind: Literal["json", "yaml"]) -> HeadSet:
    if isinstance(value, dict):
        key, heads = _in_mapping(path, value)
        return HeadSet(heads, None, f"{key} of {path}", kind)
    return HeadSet(_must(path, value), None, f"listed in {path}", kind)


def _in_mapping(path: Path, value: dict[str, Any]) -> tuple[str, tuple[Head, ...]]:
    for key in KEYS:  # a list under a known name is meant to be heads, so it must be
        if isinstance(value.get(key), (str, list)):
            return key, _must(path, value[key], key)
    for key, item in value.items():
        if isinstance(item, dict):
            try:
                return _in_mapping(path, item)
            except ResultError:
                continue
        heads = _found(item)
        # one word, or decimals, under an unknown name is rather a version or a setting
        if heads and (len(heads) > 1 or isinstance(item, list)) and not _DECIMAL.search(str(item)):
            return str(key), heads
    raise ResultError(f"{path} lists no heads; {FORMS}")


def _must(path: Path, value: Any, key: str = "") -> tuple[Head, ...]:
    heads = _found(value)
    if not heads:
        said = f"{key} {repr(value)[:60]}".strip()
        raise ResultError(f"{path}: {said} lists no heads; {FORMS}")
    return heads


def _found(value: Any) -> tuple[Head, ...] | None:
    """Heads of a text or a list, None where it is anything else."""
    try:
        if isinstance(value, str):
            return _in_text(value)
        return tuple(map(_head, value)) if isinstance(value, list) else None
    except SiteError:
        return None


def _in_text(text: str) -> tuple[Head, ...]:
    words = _PAIR.sub(r"\1-\2", re.sub(r"[\[\]'\"]", " ", text))
    heads = tuple(_head(word) for word in re.split(r"[,;\s]+", words) if word)
    if not heads:
        raise SiteError(f"{text!r} holds no head")
    return heads


def _head(item: Any) -> Head:
    if isinstance(item, (str, Head)):
        return Head.parse(item.replace("_", "-") if isinstance(item, str) else item)
    try:
        layer, head = (int(i) if isinstance(i, str) else operator.index(i) for i in item)
    except (TypeError, ValueError):
        layer = head = -1
    if min(layer, head) < 0:
        raise SiteError(f"{item!r} is no head; write it as L5H3, 5.3, 5-3 or (5, 3)")
    return Head(layer, head)


def _is_scored(item: Any) -> bool:
    pair = isinstance(item, list) and len(item) == 2
    return pair and isinstance(item[0], str) and isinstance(item[1], (int, float))


# -- ranking ----------------------------------------------------------------------------------


def _ranked(scores: np.ndarray, source: str, kind: Any) -> HeadSet:
    order = best(scores.reshape(-1), scores.size)
    heads = tuple(Head(*divmod(int(i), scores.shape[1])) for i in order)
    return HeadSet(heads, scores, source, kind)


def _spread(pairs: list[tuple[Head, float]]) -> np.ndarray:
    _distinct([head for head, _ in pairs], "the score list")
    out = np.full((max(h.layer for h, _ in pairs) + 1, max(h.head for h, _ in pairs) + 1), np.nan)
    for head, score in pairs:
        out[head.layer, head.head] = score
    return out


def _cut(found: HeadSet, k: int) -> HeadSet:
    if not 1 <= k <= len(found.heads):
        raise ResultError(
            f"top {k} of {len(found.heads)} heads ({found.source}); ask for 1 to {len(found.heads)}"
        )
    kept, source = found.heads[:k], f"{found.source}, top {k}"
    if found.scores is not None:
        values = [float(found.scores[h.layer, h.head]) for h in found.heads]
        tied = values.count(values[k - 1])
        if k < len(values) and values[k] == values[k - 1]:
            source += f" ({tied} heads tie at the cut, the first by layer and head are in)"
    return replace(found, heads=kept, source=source)


def _distinct(heads: Sequence[Head], where: str) -> None:
    if not len(heads):
        raise ResultError(f"{where}: no heads; {FORMS}")
    twice = [str(h) for h, n in Counter(heads).items() if n > 1]
    if twice:
        raise ResultError(f"{where}: {', '.join(twice)} more than once; name each head once")


def _matrix(rows: Any) -> np.ndarray:
    """Rows as floats, null as NaN; empty where they make no matrix."""
    try:
        out = np.array(rows, dtype=float)
    except (TypeError, ValueError):
        return np.empty((0, 0))
    return out if out.ndim == 2 else np.empty((0, 0))


def _inside(head: Head, scores: np.ndarray) -> bool:
    return head.layer < scores.shape[0] and head.head < scores.shape[1]


def _nulls(scores: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(v) else float(v) for v in row] for row in scores]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path} cannot be read: {error}") from None
