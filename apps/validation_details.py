"""Figures of a validation's side runs: self-repair, score against harm, other kinds of text."""

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from apps import figure_parts as parts
from apps import validation_parts as own
from interp.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd

    from circuits.statistics import Interval
    from circuits.validation_result import ValidationResult

ANSWERS = "the answers themselves"
DIRECT = {
    "total_diff": own.Mark("total", "#0072B2", "circle", "●"),
    "direct_diff": own.Mark("direct", "#D55E00", "diamond", "◆"),
    "direct_diff_frozen": own.Mark("direct, norm frozen", "#009E73", "square", "■"),
}

# -- self-repair ------------------------------------------------------------------------------


def repair(result: "ValidationResult", n: int = 20) -> go.Figure:
    """Total, direct, and direct effect under a frozen final norm, of each candidate alone."""
    table = result.direct
    if table.empty:
        raise ResultError("direct effects were not measured in this run; validate again")
    names = [str(h) for h in result.heads if str(h) in set(table["head"])][:n]
    shown = [k for k in DIRECT if k in table and table[k].astype(float).notna().any()]
    if not names or not shown:
        raise ResultError("no candidate has a direct effect on the logit difference; it needs "
                          "questions with a counterfactual value")  # fmt: skip
    fig = go.Figure()
    for column, shift in zip(shown, np.linspace(-0.24, 0.24, len(shown)), strict=True):
        sure = _by_head(result, column, names)
        x, low, high = ([getattr(s, a) for s in sure] for a in ("mean", "low", "high"))
        mark = DIRECT[column]
        fig.add_trace(
            own.points(
                x, np.arange(len(names)) + shift, mark, size=8, name=mark.words,
                error_x=parts.whiskers(low, x, high, colour=mark.colour),
                customdata=[
                    own.hover(
                        f"{name}, {mark.words} effect",
                        own.with_interval(s.mean, s.low, s.high, "logits"),
                        own.counted(s.n_trials, s.n_clusters),
                    )
                    for name, s in zip(names, sure, strict=True)
                ],
            )
        )  # fmt: skip
    labels = [f"{i}. {own.wrapped(name)}" for i, name in enumerate(names, start=1)]
    own.labelled_rows(fig, labels)
    own.set_title(
        fig, result, "total and direct effects",
        "logit of the answer minus that of the counterfactual value, change in logits",
        f"{result.settings['alone_ablation']} ablation of one head at the answer rows",
        f"mean over {own.counted(sure[0].n_trials, sure[0].n_clusters)}", own.WHISKERS,
    )  # fmt: skip
    fig.update_xaxes(title="change, logits")
    return fig.update_layout(height=260 + 44 * len(names))


def _by_head(result: "ValidationResult", column: str, names: list[str]) -> "list[Interval]":
    groups = dict(tuple(result.direct.groupby("head")))
    seed = result.settings["seed"]
    return [own.mean_interval(groups[n][column], groups[n]["needle"], seed=seed) for n in names]


# -- score against harm -----------------------------------------------------------------------


def score_effect(result: "ValidationResult") -> go.Figure:
    """Does the ranking's score foretell harm? One point a head, the candidates marked."""
    if not result.scores.size:
        raise ResultError("the head list came without scores; validate a scan to compare them")
    frame = result.alone_frame().dropna(subset=["score"])
    found = result.score_against_effect() if len(frame) >= 3 else None
    if found is None:
        raise ResultError(f"{len(frame)} heads have both score and effect, a correlation needs 3")
    words, unit = own.metric_unit(result)
    ranks = {str(h): i for i, h in enumerate(result.heads, start=1)}
    chosen = frame["name"].isin(list(ranks))
    fig = go.Figure(
        [
            _heads(frame[~chosen], own.Mark("other heads", "#7A8794", "circle", "●"), unit),
            _heads(frame[chosen], own.Mark("candidates", parts.MARK, "diamond", "◆"), unit, ranks),
        ]
    )
    rho, p = found
    own.set_title(
        fig, result, "score against harm",
        f"Spearman's rho {own.signed(rho)} over {len(frame)} heads, p {own.p_words(p)} "
        "(one-sided, heads permuted within their layers)",
        f"harm: fall of the {words}, {unit}",
        f"{result.settings['alone_ablation']} ablation at the answer rows",
        f"mean over {own.questions(result)}", f"score: {result.settings['source']}",
    )  # fmt: skip
    fig.update_xaxes(title="score that ranked the heads", zeroline=False)
    fig.update_yaxes(title=f"harm, {unit}", zeroline=True, zerolinecolor=parts.INK)
    return fig.update_layout(height=600)


def _heads(
    part: "pd.DataFrame", mark: own.Mark, unit: str, ranks: dict[str, int] | None = None
) -> go.Scatter:
    """Heads as points; ranked ones have their ranks written beside and whiskers."""
    look = {"color": mark.colour, "symbol": mark.symbol, "size": 10 if ranks else 6}
    text = [str(ranks[n]) for n in part["name"]] if ranks else None
    words = [_head_words(row, unit) for row in part.itertuples()]
    return go.Scatter(
        x=part["score"], y=-part["effect"], name=mark.words, text=text, customdata=words,
        mode="markers+text" if ranks else "markers", textposition="top right",
        marker=look, hovertemplate="%{customdata}<extra></extra>",
        error_y=parts.whiskers(-part["high"], -part["effect"], -part["low"], colour="#e3a5bf")
        if ranks else None,
    )  # fmt: skip


def _head_words(row: Any, unit: str) -> str:
    return own.hover(
        row.name, f"score {row.score:.3f}",
        f"harm {own.with_interval(-row.effect, -row.high, -row.low, unit)}",
        f"p {own.p_words(row.p)}, p (Holm, all heads) {own.p_words(row.p_holm)}",
    )  # fmt: skip


# -- other kinds of text ----------------------------------------------------------------------


def specificity(result: "ValidationResult") -> go.Figure:
    """Change of log-probability per token on other text, below that on the answers themselves."""
    if result.specificity.empty:
        raise ResultError("other kinds of text were not measured in this run; leave "
                          "--no-specificity out")  # fmt: skip
    table = per_token(result)
    kinds, fig = list(dict.fromkeys(table["kind"])), go.Figure()
    drawn = table[table["role"] == "random"].groupby(["kind", "draw"])["change"].mean()
    low, high = (
        [np.percentile(drawn[k], q) if k in drawn else np.nan for k in kinds] for q in (2.5, 97.5)
    )
    words = [_random_words(k, drawn) for k in kinds]
    fig.add_trace(
        own.band(list(range(len(kinds))), low, high, customdata=words, name="random sets")
    )
    for role in own.SHIFTS:
        if (table["role"] == role).any():
            fig.add_trace(_role_points(result, table, role))
    labels = [f"{own.wrapped(k, width=14)}<br>{_baseline(table, k)}" for k in kinds]
    own.labelled_rows(fig, labels)
    answers = f"the answers: {own.questions(result)}, scope {result.settings['scope']}"
    own.set_title(
        fig, result, "what else changes",
        "log-probability per token, change in nats",
        f"{result.specificity['ablation'].iloc[0]} ablation",
        *([answers] if ANSWERS in kinds else []), "the rest: every token but the first",
        "whiskers: 95 % bootstrap interval over needles or texts",
        "grey: 95 % of the matched random sets",
    )  # fmt: skip
    fig.update_xaxes(title="change, nats per token")
    return fig.update_layout(height=310 + 74 * len(kinds), bargap=0)


def per_token(result: "ValidationResult") -> "pd.DataFrame":
    """The table of specificity, with the answers themselves as its first kind."""
    import pandas as pd

    how = result.specificity["ablation"].iloc[0]
    here = (result.sets["ablation"] == how) & (result.sets["k"] == result.settings["top"])
    kept, m = result.kept, result.metrics.index("logprob")
    n_tokens = result.cases["n_answer"].to_numpy()[kept]
    start = result.start[kept, m] / n_tokens
    rows = [
        pd.DataFrame(
            {
                "kind": ANSWERS, "probe": result.cases["needle"].to_numpy()[kept],
                "role": row.role, "draw": row.draw, "ablation": how, "baseline": start,
                "change": result.values[row.Index, kept, m] / n_tokens - start,
            }
        )
        for row in result.sets[here].itertuples()
    ]  # fmt: skip
    table = pd.concat([*rows, result.specificity], ignore_index=True)
    return table.astype({"baseline": float, "change": float}).dropna(subset=["change"])


def _role_points(result: "ValidationResult", table: "pd.DataFrame", role: str) -> go.Scatter:
    kinds, mark, name = list(dict.fromkeys(table["kind"])), own.ROLES[role], own.role_name
    mine = table[table["role"] == role]
    parted = [mine[mine["kind"] == k] for k in kinds]
    seed = result.settings["seed"]
    sure = [own.mean_interval(part["change"], part["probe"], seed=seed) for part in parted]
    x, low, high = ([getattr(s, a) for s in sure] for a in ("mean", "low", "high"))
    return own.points(
        x, np.arange(len(kinds)) + own.SHIFTS[role], mark, size=8, name=name(result, role),
        error_x=parts.whiskers(low, x, high, colour=mark.colour),
        customdata=[
            own.hover(
                f"{name(result, role)}, {kind}",
                own.with_interval(s.mean, s.low, s.high, "nats per token"),
                f"{s.n_trials} texts or questions",
            )
            for kind, s in zip(kinds, sure, strict=True)
        ],
    )  # fmt: skip


def _random_words(kind: str, drawn: "pd.Series") -> str:
    if kind not in drawn:
        return own.hover(f"{kind}: no random sets")
    some = drawn[kind]
    ends = own.between(*np.percentile(some, [2.5, 97.5]))
    return own.hover(f"{len(some)} random sets, {kind}", f"mean {some.mean():+.2f}, 95 % {ends}")


def _baseline(table: "pd.DataFrame", kind: str) -> str:
    """Log-probability per token before anything is ablated."""
    part = table[table["kind"] == kind]
    one = part[(part["role"] == part["role"].iloc[0]) & (part["draw"] == part["draw"].iloc[0])]
    return f"(before {one['baseline'].astype(float).mean():.2f})"
