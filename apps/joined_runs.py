"""Runs beside each other: what each is of, what keeps them apart, what one says of another.

Nothing is concluded here that no run measured: heads are looked up in each other's lists, verdicts
are repeated with the run that gave them, and two scans are compared by `circuits.comparison`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from apps import html_parts as h
from apps.result_kinds import Kind, kind_of, models_of, open_run
from interp.errors import ResultError
from interp.store import Provenance

VERSIONS = ("mnemoscope", "torch", "transformers")
HASH = 12
"""Characters of a hash that are shown."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run of a report: its number there, its result, and its folder where it has one."""

    number: int
    kind: Kind
    result: Any
    folder: Path | None = None

    @property
    def at(self) -> str:
        """Its name in links."""
        return f"run-{self.number}"

    @property
    def called(self) -> str:
        """Its name in sentences."""
        return f"run {self.number} ({self.kind.word})"

    @property
    def title(self) -> str:
        """The heading of its section."""
        return f"{self.number}. {self.kind.title(self.result)}"


def open_runs(runs: Sequence[Any]) -> list[Run]:
    """Read run folders; results that are in memory are taken as they are.

    Raises:
        ResultError: none, one twice, or one that cannot be read.
    """
    if not runs:
        raise ResultError("no run was named; give the folders of one run or more")
    places = [_place(run) for run in runs]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise ResultError(f"{runs[i]} is named twice; name each run once")
    return [_open(i, run) for i, run in enumerate(runs, start=1)]


def _place(run: Any) -> Any:
    return Path(run).resolve() if isinstance(run, str | Path) else id(run)


def _open(number: int, run: Any) -> Run:
    if isinstance(run, str | Path):
        return Run(number, *open_run(run), Path(run))
    return Run(number, kind_of(run), run)


# -- what they are of -------------------------------------------------------------------------


def models_table(runs: Iterable[Run]) -> str:
    """A row for every model of every run."""
    columns = ["run", "what", "model", "weights", "layers x heads", "computed in", "made",
               *VERSIONS]  # fmt: skip
    return h.table(columns, [
        [h.Numeral(run.number), run.kind.word, name, _short(made.weight_hash),
         f"{made.n_layers} x {made.n_heads}", f"{made.dtype}, {made.device}", made.created[:10],
         *(made.versions.get(v, "–") for v in VERSIONS)]
        for run in runs
        for name, made in models_of(run.result).items()
    ])  # fmt: skip


def cautions(runs: Sequence[Run]) -> list[str]:
    """Why numbers of these runs must not be held against each other, a sentence each."""
    own = [run for run in runs if not run.kind.planted]
    return [
        *_unlike(own, _weights, "are of different weights, so that a number of one says nothing "
                 "of another"),
        *_renamed(own), *_unknown(own),
        *_unlike(own, lambda made: made.dtype, "were computed in different precision"),
        *_unlike(runs, _versions, "were made by different versions"),
    ]  # fmt: skip


def _unlike(runs: Sequence[Run], of: Callable[[Provenance], str], words: str) -> Iterator[str]:
    """A sentence where some property is not the same in all runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        found = sorted({of(made) for made in models_of(run.result).values()})
        groups.setdefault("; ".join(found), []).append(run)
    if len(groups) > 1:
        yield f"the runs {words}: {', '.join(f'{k} ({_listed(v)})' for k, v in groups.items())}"


def _renamed(runs: Sequence[Run]) -> Iterator[str]:
    """A name that stands for other weights in another run."""
    known: dict[str, dict[str | None, list[Run]]] = {}
    for run in runs:
        for name, made in models_of(run.result).items():
            known.setdefault(name, {}).setdefault(made.weight_hash, []).append(run)
    for name, kept in known.items():
        if len(kept) > 1:
            each = " and ".join(f"{_short(k)} in {_listed(v)}" for k, v in kept.items())
            yield f"the name {name} stands for different weights: {each}"


def _unknown(runs: Sequence[Run]) -> Iterator[str]:
    """Weights that nothing identifies, where there is something to compare them with."""
    bare = [r for r in runs if any(m.weight_hash is None for m in models_of(r.result).values())]
    if bare and len(runs) > 1:
        yield f"nothing identifies the weights of {_listed(bare)}; they may be those of others"


def _weights(made: Provenance) -> str:
    return f"{made.model} {_short(made.weight_hash)}"


def _versions(made: Provenance) -> str:
    known = (f"{v} {made.versions[v]}" for v in VERSIONS if v in made.versions)
    return ", ".join(known) or "not known"


def _short(digest: str | None) -> str:
    return digest[:HASH] if digest else "not known"


def _listed(runs: Sequence[Run]) -> str:
    numbers = ", ".join(str(run.number) for run in runs)
    return f"run{'s' if len(runs) > 1 else ''} {numbers}"


# -- what one says of another -----------------------------------------------------------------


def across(runs: Sequence[Run]) -> list[str]:
    """What the runs say of each other, a sentence or two for each pair that has something."""
    scans = [run for run in runs if run.kind.name == "scan" and _top(run)]
    tested = [run for run in runs if run.kind.name in HEADS]
    return [
        *(_tested(scan, run) for scan in scans for run in tested if _same_model(scan, run)),
        *(_alike(*pair) for pair in combinations(scans, 2)),
    ]


def _tested(scan: Run, run: Run) -> str:
    """How many of a scan's best heads another run took up, and what it found of its heads."""
    best, heads = _top(scan), HEADS[run.kind.name](run.result)
    taken = [head for head in best if head in heads]
    told = [f"of the {len(best)} best heads of {scan.called}, {run.called} takes up {len(taken)}"]
    if 0 < len(taken) < len(best):
        told.append(f"left out: {', '.join(head for head in best if head not in heads)}")
    if others := [head for head in heads if head not in best]:
        told.append(f"heads of its own: {', '.join(others)}")
    said = h.sentence("; ".join(told))
    verdicts = _verdicts(run.result) if run.kind.name == "validation" else ""
    return f"{said} Its verdict on its {len(heads)} heads: {verdicts}." if verdicts else said


def _verdicts(result: Any) -> str:
    """Verdicts by claim, with the ablations that gave them."""
    from apps.validation_parts import claim_word, run_name

    groups: dict[tuple[str, str], list[str]] = {}
    for finding in result.findings:
        key = claim_word(finding), finding.verdict
        groups.setdefault(key, []).append(run_name(finding))
    return "; ".join(f"{c}: {v} ({', '.join(by)})" for (c, v), by in groups.items())


def _alike(first: Run, second: Run) -> str:
    """Do two scans find the same heads, and how alike could they be at most?"""
    from circuits.comparison import compare

    pair = f"{first.called} and {second.called}"
    k = min(len(_top(run)) for run in (first, second))
    try:
        found = compare(first.result, second.result, k=k)
    except ResultError as error:
        return h.sentence(f"{pair} cannot be compared head by head: {error}")
    words = [f"{pair} share {found['top_overlap']} of their {k} best heads"]
    if found["pearson"] is not None:
        most = found["pearson_ceiling"]
        beside = "" if most is None else f", where two perfect repetitions would reach {most:.2f}"
        words.append(f"copy scores of {found['heads']} heads correlate at {found['pearson']:.2f}"
                     f" (Pearson{beside})")  # fmt: skip
    for run, heads in ((first, found["only_first"]), (second, found["only_second"])):
        if heads:
            words.append(f"only in run {run.number}: {', '.join(heads)}")
    if not _same_model(first, second):
        words.append("of different weights, in which heads of one name need not be the same head")
    return h.sentence("; ".join(words))


def _same_model(first: Run, second: Run) -> bool:
    """The same known weights."""
    a, b = (run.result.provenance.weight_hash for run in (first, second))
    return a is not None and a == b


def _top(run: Run) -> list[str]:
    """A scan's best heads; none where it answered too little to rank them."""
    try:
        return [str(head) for head in run.result.top()]
    except ResultError:
        return []


HEADS: Mapping[str, Callable[[Any], list[str]]] = {
    "validation": lambda result: [str(head) for head in result.heads],
    "circuit": lambda result: list(result.settings["heads"]),
}
"""Kinds that take up heads which a scan has ranked."""
