"""Prompts of a binding study as text, a few entity sets: what the evaluations were made of."""

from typing import TYPE_CHECKING, Any

from circuits.binding_plan import BindSettings
from circuits.binding_study import MAIN, OFFSET

if TYPE_CHECKING:
    from circuits.competence import Ready

N_SETS = 3


def example_prompts(ready: "Ready", settings: BindSettings) -> list[dict[str, Any]]:
    """Prompts of the first entity sets of the main design, drawn again as they were for the run.

    Returns:
        For each set its `set` number as in the evaluations, `recipient` and `donors`, each with the
        text that its questions share (`context`) and the rest by group asked (`questions`).
    """
    out = []
    for k in range(min(N_SETS, settings.n_sets)):
        drawn = ready.sampler(collisions=settings.collisions).draw(
            OFFSET[MAIN] + k, ("main",), seed=settings.seed, repeats=settings.donors
        )
        donors = [_texts(ready, d.matrix, d.groups) for d in drawn.donors]
        recipient = _texts(ready, drawn.matrix, range(drawn.n))
        out.append({"set": drawn.index, "recipient": recipient, "donors": donors})
    return out


def _texts(ready: "Ready", matrix: Any, groups: Any) -> dict[str, Any]:
    decode = ready.writer.tokenizer.decode
    prompts = {int(g): ready.writer.write(matrix, g) for g in groups}
    start = min(p.context.stop for p in prompts.values())
    first = next(iter(prompts.values()))
    return {
        "context": decode(first.tokens[:start]),
        "questions": {str(g): decode(p.tokens[start:]) for g, p in prompts.items()},
        "words": [list(row) for row in matrix],
    }
