"""Transformers whose retrieval circuit is known: what a test of a claim must be able to tell.

Ordinary Hugging Face models with weights set by hand, that go through `interp.load` and
`circuits.scan` as any other. Each holds one circuit known for how copying works, or for how it
fools its observer: induction (arXiv 2209.11895), attention without effect (arXiv 1902.10186),
self-repair and negative heads (arXiv 2211.00593), sinks (arXiv 2309.17453), grouped keys, sliding
windows. All other heads are random and nearly without effect. A claim about such a model has a
right answer, so that a procedure can be scored on how often it gives it.

    planted = build("backup")
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    result = circuits.scan(model, **write_materials(folder).scan | planted.truth.options)
"""

import json
import random
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp.errors import PromptError, UnknownNameError
from interp.sites import Head
from probes import planted_weights as w
from probes.format import ASK, CUE, INSTRUCTION
from probes.planted_weights import N_HEADS, Circuit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Verdict = Literal["supported", "unsupported", "inconclusive"]
Scope = Literal["suffix", "everywhere", "never"]


@dataclass(frozen=True)
class Part:
    """A planted head.

    Attributes:
        layers: those that it may stand in.
        attends: whether it attends to the value in the row that gives the answer.
        needed: where its ablation alone must reach to hurt the answer: the `suffix` behind the
            context, `everywhere` (the context too), or `never`.
    """

    role: str
    layers: tuple[int, ...]
    circuit: Circuit
    attends: bool = False
    needed: Scope = "never"


@dataclass(frozen=True)
class Claim:
    """That the answer needs the heads of some roles, and what a test of it should find.

    Right for zero and for mean ablation, in the suffix and everywhere. Without roles it is about
    whatever heads the copy score puts first.
    """

    roles: tuple[str, ...]
    expected: Verdict
    why: str


@dataclass(frozen=True)
class Planted:
    """A circuit, and what is true of it.

    Attributes:
        claims: the first is the one that the copy score suggests.
        answers: whether the model answers.
        options: of `circuits.scan`, where the circuit needs other prompts.
        grouped: query heads that share a key-value head.
        window: width of the sliding window; a needle as far from the answer is not found.
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    claims: tuple[Claim, ...]
    answers: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    grouped: int = 1
    window: int | None = None


@dataclass(frozen=True)
class Truth:
    """What is true of one built model: its row of the table, and where its heads stand."""

    planted: Planted
    roles: dict[Head, str]

    def heads(self, *roles: str) -> tuple[Head, ...]:
        """The heads with these roles, in their order."""
        return tuple(h for role in roles for h, mine in self.roles.items() if mine == role)

    @property
    def causal(self) -> tuple[Head, ...]:
        """Heads whose ablation alone, behind the context, hurts the answer."""
        return self.heads(*(p.role for p in self.planted.parts if p.needed == "suffix"))

    @property
    def upstream(self) -> tuple[Head, ...]:
        """Heads whose ablation alone hurts only if it is made in the context too."""
        return self.heads(*(p.role for p in self.planted.parts if p.needed == "everywhere"))

    @property
    def attends(self) -> tuple[Head, ...]:
        """Heads that attend to the needle's value in the row that gives the answer."""
        return self.heads(*(p.role for p in self.planted.parts if p.attends))

    @property
    def claims(self) -> tuple[tuple[tuple[Head, ...], Claim], ...]:
        """Heads with the claim that the answer needs them; none: the copy score's first."""
        return tuple((self.heads(*c.roles), c) for c in self.planted.claims)

    @property
    def expected(self) -> Verdict:
        """The right verdict on the heads that the copy score puts first."""
        return self.planted.claims[0].expected

    @property
    def options(self) -> dict[str, Any]:
        """Options of `circuits.scan`, to lay over those of the materials."""
        return dict(self.planted.options)


@dataclass(frozen=True, eq=False)
class PlantedModel:
    """A live model with its tokenizer, and what is true of it."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerFast"
    truth: Truth


@dataclass(frozen=True)
class Materials:
    """Files of needles and haystack, and the options of `circuits.scan` that use them."""

    needles: Path
    haystack: Path
    scan: dict[str, Any]


def build(name: str, *, seed: int = 0, n_heads: int = N_HEADS) -> PlantedModel:
    """A model of the table; the seed places its heads and draws the distractors.

    `n_heads` is per layer. Eight are quick; a test against matched random sets needs more, since a
    single head has no more such sets than its layer has other heads.

    Raises:
        UnknownNameError: no such model.
        PromptError: a number of heads that the width, or a group of heads, is no multiple of.
    """
    if name not in PLANTED:
        raise UnknownNameError("planted model", name, PLANTED)
    planted = PLANTED[name]
    if n_heads < N_HEADS or w.D_MODEL % n_heads or n_heads % planted.grouped:
        fits = [n for n in range(N_HEADS, w.D_MODEL + 1, 4) if w.D_MODEL % n == 0]
        raise PromptError(f"planted models have {', '.join(map(str, fits))} heads, got {n_heads}")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    placed = _place(planted, rng, n_heads)
    circuits = {head: part.circuit for head, part in placed.items()}
    heads = w.fill(circuits, rng, grouped=planted.grouped, n_heads=n_heads)
    model = w.assemble(heads, grouped=planted.grouped, window=planted.window)
    model.name_or_path = f"planted-{name}-{seed}"
    truth = Truth(planted, {head: part.role for head, part in placed.items()})
    return PlantedModel(model, w.tokenizer(), truth)


def write_materials(folder: str | Path, *, seed: int = 0) -> Materials:
    """Write a needle for every key word, and a text that holds no key word and no value."""
    rng = random.Random(seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    needles, haystack = folder / "needles.jsonl", folder / "haystack.txt"
    rows = [json.dumps(_needle(kind, key, rng)) for kind in w.KINDS for key in w.KINDS[kind][0]]
    text = " ".join(FILLER.format(*map(rng.choice, _SLOTS)) for _ in range(N_SENTENCES))
    needles.write_text("\n".join(rows) + "\n", "utf-8")
    haystack.write_text(text + "\n", "utf-8")
    files = {"needles": str(needles), "haystack": (str(haystack),)}
    return Materials(needles, haystack, SCAN | files)


def length(n_sentences: int) -> int:
    """Tokens of a context of so many sentences, all of which are of one length."""
    return 1 + _count(INSTRUCTION) + n_sentences * _count(FILLER)


def _place(planted: Planted, rng: np.random.Generator, n_heads: int) -> dict[Head, Part]:
    """A free head for each part, in one of its layers."""
    placed: dict[Head, Part] = {}
    for part in planted.parts:
        layer = int(rng.choice(part.layers))
        free = [h for h in range(n_heads) if Head(layer, h) not in placed]
        placed[Head(layer, int(rng.choice(free)))] = part
    return placed


def _needle(kind: str, key: str, rng: random.Random) -> dict[str, Any]:
    words = [rng.choice(slot) for slot in _SLOTS[:4]]
    return {
        "id": key,
        "kind": kind,
        "language": "en",
        "sentence": FILLER.format(*words, key, "{value}"),
        "question": QUESTION.format(key),
        "values": list(w.KINDS[kind][1]),
    }


def _count(text: str) -> int:
    """Tokens of a text; a slot of a template holds one."""
    return len(re.findall(r"\w+|[^\w\s]+", text.replace("{}", "x")))


FILLER, QUESTION = "The {} {} {} {} the {} {}.", "Which one was {}?"
_SLOTS = (w.ADJECTIVES, w.NOUNS, w.VERBS, w.PLACINGS, w.ADJECTIVES, w.NOUNS)
N_SENTENCES = 3000
TO_VALUE = 1 + _count(ASK.format(question=QUESTION) + CUE + " {}")
"""Tokens from the answering row back to the value of a needle that ends the context."""

SCAN: dict[str, Any] = {
    "lengths": (length(10),),
    "depths": (0.2, 0.5, 0.8),
    "n_haystacks": 10,
    "style": "plain",
    "cue_words": 1,
    "top": 1,
    "generate": False,  # an answer is one token, of which the forced test says all
    "stop_early": False,
}

# -- the table ------------------------------------------------------------------------------------

_ALL = (w.BOS, *w.MARKS, *w.WORDS)
_BEHIND_CUE = (*w.match("token", "previous"), w.REST, w.NO_MARK)
_OF_ITS_KIND = (*((w.at("token", k), w.at("token", v)) for k, v in w.KINDS.values()), w.REST)
# half a match rests; a row that is no question mark rests in any case
_FOR_THE_QUESTION = (
    *w.match("previous", "previous"),
    w.rests(w.const(2.5) | w.at("token", "?", -2.0)),
    w.NO_MARK,
)
# a value that stands in the output already is looked away from
_UNLESS_ANSWERED = (
    *w.match("token", "previous", w.KEYS),
    *((w.at("out", v), w.at("token", v, -1.0)) for v in w.VALUES),
    w.REST,
    w.NO_MARK,
)
_AT_QUESTION = ((w.const(), w.at("token", "?")), w.REST)
_AT_FIRST = w.match("note", "token", _ALL, weight=2.0)
_ANSWER = w.copies("token", "out", 2.0)
# a norm higher up divides by what all heads wrote below: as loud as the head it stands in for
_LOUDER = w.copies("token", "out", 2.2)

_STEP = Circuit((), w.distance(1), w.copies("token", "previous"))
PREVIOUS = Part("previous", (0,), _STEP, needed="everywhere")
COPY = Part("copy", (1, 2), Circuit(_BEHIND_CUE, {}, _ANSWER), attends=True, needed="suffix")
LOOK = Part("look", (1, 2), Circuit(_BEHIND_CUE, {}, w.wastes()), attends=True)
AGAINST = Circuit(_BEHIND_CUE, {}, w.copies("token", "out", -0.5))
# it notes the first token at every other, by which the sinks above find it
SINK = Part("sink", (0,), Circuit((), w.farthest(), w.copies("token", "note", 0.5, _ALL)))
NECESSARY = Claim(("copy",), "supported", "the head alone writes the answer")

_ROWS = (
    Planted(
        "copy_content",
        "One head knows which values belong to a key word, and copies the one it finds.",
        (Part("copy", (0, 1, 2), Circuit(_OF_ITS_KIND, {}, _ANSWER), True, "suffix"),),
        (NECESSARY,),
        options={"mode": "single"},  # another value of the kind would be found as well
    ),
    Planted(
        "copy_offset",
        "One head copies whatever stands at a fixed distance, where the needles are put.",
        (Part("copy", (0, 1), Circuit((), w.distance(TO_VALUE), _ANSWER), True, "suffix"),),
        (NECESSARY,),
        options={"depths": (1.0,), "n_haystacks": 16},
    ),
    Planted(
        "induction_pair",
        "A previous-token head, and a head that copies what stands behind the cue word.",
        (PREVIOUS, COPY),
        (NECESSARY,),
    ),
    Planted(
        "attends_only",
        "Beside the copying pair, a head that attends just as it does and writes nothing.",
        (PREVIOUS, COPY, LOOK),
        (
            Claim(("look",), "unsupported", "it looks at the value, and nobody reads what it saw"),
            NECESSARY,
        ),
    ),
    Planted(
        "writes_unseen",
        "A head moves the value to the question mark; the one that answers copies it from there.",
        (
            Part("previous", (0,), _STEP, needed="suffix"),  # tells the mark what is asked for
            Part("move", (1,), Circuit(_FOR_THE_QUESTION, {}, w.copies("token", "note")),
                 needed="suffix"),
            Part("answer", (2,), Circuit(_AT_QUESTION, {}, w.copies("note", "out", 2.0)),
                 needed="suffix"),
        ),
        (
            Claim((), "unsupported", "no head looks at the needle from the row that answers"),
            Claim(("move",), "supported", "it alone fetches the value, a few rows before"),
            Claim(("answer",), "supported", "it alone writes the answer"),
        ),
    ),
    Planted(
        "backup",
        "A copying head, and one above that copies when the value is not yet in the output.",
        (
            PREVIOUS,
            Part("copy", (1,), Circuit(_BEHIND_CUE, {}, _ANSWER), attends=True),
            Part("backup", (2,), Circuit(_UNLESS_ANSWERED, {}, _LOUDER)),
        ),
        (
            Claim(("copy",), "unsupported", "without it the backup gives the same answer"),
            Claim(("copy", "backup"), "supported", "without both nothing gives the answer"),
        ),
    ),
    Planted(
        "negative",
        "A copying head, and one that attends alike and writes against the answer.",
        (PREVIOUS, COPY, Part("negative", (1, 2), AGAINST, attends=True)),
        (NECESSARY, Claim(("negative",), "unsupported", "the answer is likelier without it")),
    ),
    Planted(
        "sink",
        "Beside the copying pair, heads that always attend to the first token.",
        (
            PREVIOUS,
            COPY,
            SINK,
            Part("sink", (1,), Circuit(_AT_FIRST, {}, w.wastes())),
            Part("sink", (2,), Circuit(_AT_FIRST, {}, w.wastes())),
        ),
        (NECESSARY, Claim(("sink",), "unsupported", "nothing of the answer passes through them")),
    ),
    Planted(
        "grouped",
        "The copying pair in a model whose query heads share keys and values by fours.",
        (PREVIOUS, COPY),
        (NECESSARY,),
        grouped=4,
    ),
    Planted(
        "window",
        "The copying pair in a model with a sliding window of 64 tokens.",
        (PREVIOUS, COPY),
        (NECESSARY,),
        options={"lengths": (length(20),), "depths": (0.1, 0.4, 0.85, 1.0)},
        window=64,
    ),
    Planted(
        "none",
        "A previous-token head among random ones: nothing retrieves.",
        (Part("previous", (0,), _STEP),),
        (Claim((), "inconclusive", "the model never answers, so there is nothing to test"),),
        answers=False,
    ),
)  # fmt: skip
PLANTED: dict[str, Planted] = {row.name: row for row in _ROWS}
"""The models, by name."""
