"""Attention of a few heads over the neighbourhood of one needle, kept for drawing."""

from typing import TYPE_CHECKING, Any

from interp.trace import RowRead

if TYPE_CHECKING:
    from circuits.plan import ScanPlan
    from circuits.scan_result import ScanResult
    from interp.backends.hf import HFModel

N_HEADS = 12
MARGIN = 12
"""Tokens shown before and after the needle."""


def neighbourhood(model: "HFModel", plan: "ScanPlan", result: "ScanResult") -> dict[str, Any]:
    """Rows of the best heads in the shortest passed trial of median depth.

    Returns plain values: tokens around the needle, which of them are the answer, the tokens that
    the rows produce, and `[head][row][token]` weights rounded to four places.
    """
    name = _pick(result)
    context, trial = next(
        (c, t)
        for c, group in zip(plan.contexts, plan.trials, strict=True)
        for t in group
        if t.name == name
    )
    place = context.planted[trial.planted]
    span = range(max(0, place.start - MARGIN), min(trial.length, place.stop + MARGIN))
    heads = _best(result)
    suffix = (*trial.suffix, *trial.answer[:-1])
    rows = tuple(range(len(trial.suffix) - 1, len(suffix)))
    prefix = model.prefill(context.tokens[: trial.length])
    read = RowRead((rows,), whole=heads)
    whole = model.extend(prefix, [suffix], read=[read]).rows[0].whole
    decode = plan.fmt.tokenizer.decode
    return {
        "trial": name,
        "tokens": [decode([context.tokens[i]]) for i in span],
        "first": span.start,
        "needle": [place.start, place.stop],
        "answer": [place.answer.start, place.answer.stop],
        "produced": [decode([i]) for i in trial.answer],
        "heads": [str(h) for h in heads],
        "weights": [
            [[round(float(w), 4) for w in row[span.start : span.stop]] for row in whole[h]]
            for h in heads
        ],
    }


def _best(result: "ScanResult") -> tuple:
    import numpy as np

    from interp.sites import Head

    mean = np.nan_to_num(result.mean("copy"), nan=-1)
    order = np.argsort(-mean, axis=None, kind="stable")[:N_HEADS]
    return tuple(Head(*divmod(int(i), mean.shape[1])) for i in order)


def _pick(result: "ScanResult") -> str:
    passed = result.trials[result.trials["passed"]]
    short = passed[passed["length"] == passed["length"].min()]
    order = (short["true_depth"] - short["true_depth"].median()).abs().sort_values(kind="stable")
    return str(short.loc[order.index[0], "trial"])
