"""The planted binding models, one a row: what is wired, how much it weighs, what is true of it.

Some are mechanisms alone, some a mixture, some look like a mixture and are none: an answer that is
copied early (arXiv 2510.06182, section 3.4), prompts that differ in what they follow, words that
are likely anywhere, answers in another form than the context's, a model that cannot answer.
"""

from dataclasses import dataclass
from typing import Any, Literal

from probes.planted_binding_weights import MECHANISMS, Mechanism

Verdict = Literal["identified", "abstain"]
Wired = Literal["pointers", "copy", "switch", "guess"]


@dataclass(frozen=True)
class BindingRow:
    """A model of the table, for any number of groups.

    Attributes:
        expected: what an honest detector says of it: which mechanisms there are, or nothing.
        mechanisms: those that are there.
        notes: what it should say besides.
        w_pos, sigma: of the positional term; sigma as (alpha, beta, gamma).
        w_lex, w_ref: of the other terms, the mean over groups.
        spread: by how much of it their weight may differ between groups, drawn by the seed.
        wired: `pointers`; `copy`: the question fetches the answer, not a pointer, and it is in the
            output before anything is looked up; `switch`: the asked word of the first role, in the
            donor's last token, says which one mechanism is followed; `guess`: it says which group,
            whatever the context.
        prior: standard deviation of a logit that each possible answer has for itself.
        capitals: whether answers have a capital, which the context has not.
        dtype: of the weights and of all arithmetic.
    """

    name: str
    title: str
    expected: Verdict
    mechanisms: tuple[Mechanism, ...] = ()
    notes: tuple[str, ...] = ()
    w_pos: float = 0.0
    sigma: tuple[float, float, float] = (0.0, 0.0, 1.0)
    w_lex: float = 0.0
    w_ref: float = 0.0
    spread: float = 0.0
    wired: Wired = "pointers"
    prior: float = 0.0
    capitals: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"


_RISING = (-4.8, 4.6, 0.7)
"""Widths from 0.7 over 1.8 in the middle to 1: places blur away from the ends."""
_SHARP = (0.0, 0.0, 0.3)
_MIXED: dict[str, Any] = {
    "w_pos": 11.0,
    "sigma": _RISING,
    "w_lex": 2.5,
    "w_ref": 2.4,
    "spread": 0.2,
}

_ROWS = (
    BindingRow(
        "mixture",
        "All three pointers are followed at once, and places blur in the middle.",
        "identified", MECHANISMS, ("within prompts",), **_MIXED,
    ),
    BindingRow(
        "positional",
        "Only the place of the group counts, and it blurs in the middle.",
        "identified", ("positional",), w_pos=30.0, sigma=_RISING,
    ),
    BindingRow(
        "positional_sharp",
        "Only the place of the group counts, and none is mistaken for its neighbour.",
        "identified", ("positional",), w_pos=12.0, sigma=_SHARP,
    ),
    BindingRow(
        "lexical",
        "Only the asked word counts, wherever it stands.",
        "identified", ("lexical",), w_lex=8.0, spread=0.2,
    ),
    BindingRow(
        "reflexive",
        "Only the pointer to the answer counts; it finds nothing where the answer is absent.",
        "identified", ("reflexive",), w_ref=8.0, spread=0.2,
    ),
    BindingRow(
        "answer_copy",
        "The question fetches the answer itself: as reflexive, but for absent answers too.",
        "abstain", (), ("copy",), w_ref=8.0, wired="copy",
    ),
    BindingRow(
        "mixing",
        "All three pointers are followed at once and alike, and no place blurs.",
        "identified", MECHANISMS, ("within prompts",),
        w_pos=8.1, sigma=_SHARP, w_lex=8.0, w_ref=8.0,
    ),
    BindingRow(
        "switching",
        "Every prompt follows one pointer alone, and their average is that of mixing.",
        "identified", MECHANISMS, ("between prompts",),
        w_pos=12.0, sigma=_SHARP, w_lex=12.0, w_ref=12.0, wired="switch",
    ),
    BindingRow(
        "word_prior",
        "The mixture, where some answers are likelier whatever the context.",
        "identified", MECHANISMS, ("within prompts", "word prior"), prior=1.2, **_MIXED,
    ),
    BindingRow(
        "capitals",
        "The mixture, where answers have a capital that the context has not.",
        "identified", MECHANISMS, ("within prompts", "answer form"), capitals=True, **_MIXED,
    ),
    BindingRow(
        "incompetent",
        "The asked word stands for some group, whoever is in it.",
        "abstain", (), ("incompetent",), w_pos=12.0, sigma=_SHARP, wired="guess",
    ),
    BindingRow(
        "bf16",
        "The mixture in half precision.",
        "identified", MECHANISMS, ("within prompts", "half precision"), dtype="bfloat16", **_MIXED,
    ),
)  # fmt: skip
PLANTED_BINDING: dict[str, BindingRow] = {row.name: row for row in _ROWS}
"""The models, by name."""
