"""What the explorer shows of a binding run: pointers by position, answers, recorded examples."""

from typing import Any

from circuits.binding_labels import LABELS
from circuits.binding_study import MAIN
from interp.errors import MnemoscopeError

MOST = 4000
"""Evaluations of a study that are given to the page; its shares are of all."""
_KEPT = ("set", "donor", "i_p", "i_l", "i_r", "i_n", "label", "mass")


def binding_data(result: Any) -> list[dict[str, Any]]:
    """Studies of a binding run, as plain values."""
    return [_study(key, s) for key, s in result.studies.items()]


def _study(key: str, study: Any) -> dict[str, Any]:
    rows = study.records.of(MAIN, design="main", layer=study.layer) if study.layer else None
    return {
        "key": key, "task": study.task, "target": study.target, "n": study.n,
        "layer": study.layer, "verdict": study.verdict, "labels": list(LABELS),
        "curve": [] if rows is None or not len(rows) else _curve(study),
        "cases": [] if rows is None else _cases(rows),
        "n_cases": 0 if rows is None else len(rows),
        "examples": study.about.get("examples", []),
    }  # fmt: skip


def _curve(study: Any) -> list[dict[str, Any]]:
    """Share of each label by the group that the donor asked about, with its interval."""
    try:
        table = study.shares()
    except MnemoscopeError:
        return []
    return [{k: _plain(v) for k, v in row.items()} for row in table.to_dict("records")]


def _cases(records: Any) -> list[dict[str, Any]]:
    """Evaluations: where each pointer led, and which group was answered (by the largest logit)."""
    table = records.rows[list(_KEPT)].head(MOST)
    said = records.logits[: len(table)].argmax(1)
    rows = table.to_dict("records")
    return [
        {k: _plain(v) for k, v in row.items()} | {"said": int(g)}
        for row, g in zip(rows, said, strict=True)
    ]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return None if value != value else round(value, 5)  # noqa: PLR0124
    return value
