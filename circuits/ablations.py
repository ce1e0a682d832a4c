"""Named ablations: what "ablating a head" means, one row each, exact.

In the literature of retrieval heads the word stands for at least five different changes, so that
published curves cannot be compared with one another. Here an ablation is data: a name, a formula,
the place where it acts and who used it; every result carries all four.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from interp.errors import UnknownNameError
from interp.sites import Edit, Head, Site

if TYPE_CHECKING:
    from torch import Tensor

Scope = Literal["suffix", "decode", "everywhere"]

SCOPES: dict[str, str] = {
    "suffix": "every token behind the context: question, cue and answer",
    "decode": "the rows that produce the answer, from the last prompt token on, as published",
    "everywhere": "the whole prompt, the context included",
}


@dataclass(frozen=True, eq=False)
class Material:
    """What edits of one prompt are made of.

    Attributes:
        positions: the edited positions.
        classes: the position class of each of them.
        means: mean head output by class, `[layer, head, d_head]`, over reference prompts.
        twin: head outputs of the counterfactual prompt at the edited positions, by layer
            `[pos, head, d_head]`.
        needle: absolute positions of the needle.
    """

    positions: tuple[int, ...]
    classes: tuple[str, ...] = ()
    means: "Mapping[str, Tensor]" = field(default_factory=dict)
    twin: "Mapping[int, Tensor]" = field(default_factory=dict)
    needle: range = range(0)


@dataclass(frozen=True)
class Ablation:
    """One meaning of the word.

    Attributes:
        formula: what stands in the place of what.
        acts_on: where.
        used_by: papers and tools.
        needs: what a prompt must come with: `means`, `twin`, `needle`, or nothing.
    """

    name: str
    formula: str
    acts_on: str
    used_by: str
    needs: str
    edit: Callable[[Head, Material], Edit]

    @property
    def may_be_idle(self) -> bool:
        """A head that the needle's value does not reach gives the same as before."""
        return self.needs in ("twin", "needle")


def _z(op: str) -> Callable[[Head, Material], Edit]:
    def edit(head: Head, m: Material) -> Edit:
        import torch

        if op == "mean":
            value = torch.stack([m.means[c][head.layer, head.head] for c in m.classes])
        elif op == "resample":
            value = m.twin[head.layer][:, head.head]
        else:
            value = None
        site = Site("z", head.layer, head.head)
        return Edit(site, op, value, positions=m.positions)  # type: ignore[arg-type]

    return edit


def _pattern(op: str) -> Callable[[Head, Material], Edit]:
    def edit(head: Head, m: Material) -> Edit:
        keys = tuple(m.needle) if op == "knockout" else None
        site = Site("pattern", head.layer, head.head)
        return Edit(site, op, positions=m.positions, keys=keys)  # type: ignore[arg-type]

    return edit


def _query(head: Head, m: Material) -> Edit:
    return Edit(Site("q", head.layer, head.head), "zero", positions=m.positions)


ABLATIONS: dict[str, Ablation] = {
    a.name: a
    for a in (
        Ablation(
            "mean",
            "z = mean of the head's z over reference prompts (other needles), per position class",
            "head output",
            "function vectors (2310.15213), dual-route induction (2504.03022)",
            "means",
            _z("mean"),
        ),
        Ablation(
            "zero",
            "z = 0",
            "head output, before the output projection",
            "retrieval-head-profile (2606.21249), retrieval-head-atlas",
            "",
            _z("zero"),
        ),
        Ablation(
            "resample",
            "z = the head's z at the same position of the twin prompt, which states another value",
            "head output",
            "interchange and activation patching (2404.15255, 2407.08734)",
            "twin",
            _z("resample"),
        ),
        Ablation(
            "uniform",
            "equal attention to every visible key: z = mean of the visible values",
            "pattern",
            "the published 'masking' of retrieval heads (2404.15574, eager path)",
            "",
            _pattern("uniform"),
        ),
        Ablation(
            "query_zero",
            "q = 0 after query-key norm and rotary embedding: all logits 0; equals uniform unless "
            "a learned sink takes its share",
            "query",
            "2404.15574 (flash path), DeCoRe (2410.18860), LOCOS (2607.01002)",
            "",
            _query,
        ),
        Ablation(
            "sink",
            "all attention to the first visible token: z = its value",
            "pattern",
            "heads at rest (2309.17453); Penzai's knock-out to BOS",
            "",
            _pattern("sink"),
        ),
        Ablation(
            "knockout",
            "edges from the edited positions to the needle's tokens cut, the row renormalised",
            "pattern",
            "attention knock-out (2304.14767); belief tracking (2505.14685)",
            "needle",
            _pattern("knockout"),
        ),
    )
}


def ablation(name: str) -> Ablation:
    """The ablation of that name.

    Raises:
        UnknownNameError: no such ablation.
    """
    if name not in ABLATIONS:
        raise UnknownNameError("ablation", name, ABLATIONS)
    return ABLATIONS[name]


def scope(name: str) -> Scope:
    """The scope of that name.

    Raises:
        UnknownNameError: no such scope.
    """
    if name not in SCOPES:
        raise UnknownNameError("scope", name, SCOPES)
    return name  # type: ignore[return-value]


def edits_of(sets: Sequence[Sequence[Head]], how: Ablation, material: Material) -> list[Edit]:
    """Edits that ablate set i in row i: one for each head, naming all rows that hold it."""
    rows: dict[Head, list[int]] = {}
    for row, heads in enumerate(sets):
        for head in heads:
            rows.setdefault(head, []).append(row)
    return [replace(how.edit(h, material), rows=tuple(r)) for h, r in sorted(rows.items())]
