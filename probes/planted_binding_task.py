"""The prompts of planted binding models: their words, where each stands, how a model sees them.

A token is a word, and every group has as many of them, so that a position says which group and
which role stands there. A task is the plain mapping that a file of `probes.binding_tasks` holds.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.errors import PromptError
from probes.planted_binding_weights import Rows, Space, balanced
from probes.planted_weights import BOS, UNKNOWN

END = "</s>"
SPARE = 8
"""Words of a pool beyond those of one context."""
MIN_GROUPS = 4
"""Fewer do not keep four indices apart."""
ROOM = 64
"""Positions behind the prompt."""
REST = 4.0
"""Logit of the end wherever no answer is due, behind the answer above all."""

WORDS = {
    "person": (
        "Adam Alice Anna Ben Bob Carl Chris David Emma Frank Grace Henry Jack James "
        "Jane John Julia Kate Kevin Laura Lucy Mark Mary Mike Nick Paul Peter Rachel"
    ),
    "fruit": (
        "apple apricot banana cherry coconut currant date fig grape guava kiwi lemon lime lychee "
        "mango melon nectarine olive orange papaya peach pear plum pomelo quince raspberry "
        "tangerine walnut"
    ),
    "place": (
        "attic barn barrel basket bucket cabinet cellar chest closet crate cupboard drawer garage "
        "hamper jar kitchen larder locker pantry pouch sack shed stable tent tower trunk vault "
        "wagon"
    ),
}
ROLES = tuple(WORDS)
"""In the order of a clause: a, b, c. The second is asked for, by the other two."""
MAX_GROUPS = min(len(words.split()) for words in WORDS.values()) - SPARE

TEXTS: dict[str, Any] = {
    "name": "planted_fruits",
    "title": "who keeps which fruit where",
    "roles": list(ROLES),
    "prefix": "",
    "clause": "{person} keeps the {fruit} in the {place}",
    "joiner": " , ",
    "last_joiner": " , ",
    "end": " .",
    "questions": [
        {
            "target": "fruit",
            "ask": "What does {person} keep in the {place} ?",
            "complete": "what {person} keeps in the {place} is",
        }
    ],
}


@dataclass(frozen=True)
class Layout:
    """Token positions in a prompt, the beginning-of-sequence token being 0.

    Attributes:
        groups: of the word of each role, `[group]`.
        asked: of the words that the question names, by role.
        last: of the token whose next one is the answer.
    """

    groups: Mapping[str, tuple[int, ...]]
    asked: Mapping[str, int]
    last: int


def draw_task(n: int, rng: np.random.Generator) -> dict[str, Any]:
    """The task with `n + SPARE` words a role, drawn and shuffled.

    Raises:
        PromptError: fewer groups than there are indices to keep apart, or too few words for them.
    """
    if not MIN_GROUPS <= n <= MAX_GROUPS:
        raise PromptError(f"planted binding has {MIN_GROUPS} to {MAX_GROUPS} groups, got {n}")
    drawn = {role: rng.permutation(words.split())[: n + SPARE] for role, words in WORDS.items()}
    return copy.deepcopy(TEXTS) | {"pools": {role: words.tolist() for role, words in drawn.items()}}


def render(
    task: Mapping[str, Any], groups: Sequence[Mapping[str, str]], asked: Mapping[str, str]
) -> str:
    """The prompt: groups of words by role, and a sentence on the `asked` ones to be completed."""
    clauses = [task["clause"].format(**group) for group in groups]
    stated = task["joiner"].join(clauses[:-1]) + task["last_joiner"] + clauses[-1]
    complete = task["questions"][0]["complete"].format(**asked)
    return f"{task['prefix']} {stated}{task['end']}\n{complete}"


def layout(task: Mapping[str, Any], n: int) -> Layout:
    """Where everything stands in a prompt of `n` groups."""
    a, _, c = task["roles"]
    groups = [{role: f"{role}{i}" for role in task["roles"]} for i in range(n)]
    tokens = [BOS, *_split(render(task, groups, {a: "asked1", c: "asked2"}))]
    return Layout(
        {role: tuple(tokens.index(g[role]) for g in groups) for role in task["roles"]},
        {a: tokens.index("asked1"), c: tokens.index("asked2")},
        len(tokens) - 1,
    )


def vocabulary(task: Mapping[str, Any], answers: Sequence[str]) -> tuple[str, ...]:
    """All words of a task and of its answers; the end is the first, so that it wins all ties."""
    texts = [task[k] for k in ("prefix", "clause", "joiner", "last_joiner", "end")]
    texts += [q[k] for q in task["questions"] for k in ("ask", "complete")]
    plain = _split(" ".join(re.sub(r"\{\w+\}", " ", text) for text in texts))
    entities = [word for words in task["pools"].values() for word in words]
    return tuple(dict.fromkeys((END, BOS, UNKNOWN, *plain, *entities, *answers)))


def embed(
    s: Space, vocab: Sequence[str], task: Mapping[str, Any], places: Layout
) -> dict[str, Rows]:
    """Embeddings of words and positions, `wte` and `wpe`: `[row, d_model]`."""
    words = np.zeros((len(vocab), s.width))
    everywhere = s("const") + s("other") + s("rest")
    positions = np.repeat(everywhere, places.last + 1 + ROOM, axis=0)
    positions[places.last] += (s("last") - s("rest"))[0]
    positions[0] += (s("first") - s("other"))[0]
    positions[list(places.groups[task["roles"][1]])] += s("is_b") - s("other")
    for role, letter in zip(task["roles"], "abc", strict=True):
        words[[vocab.index(word) for word in task["pools"][role]]] = s(f"word_{letter}")
        positions[list(places.groups[role])] += s(f"group_{letter}")
        if role in places.asked:
            positions[places.asked[role]] += s(f"asked_{letter}")[0]
    return {"wte": balanced(words), "wpe": balanced(positions)}


def unembed(s: Space, vocab: Sequence[str], answers: Sequence[str], prior: np.ndarray) -> Rows:
    """Logits of the forms in which words b are answered, `[d_vocab, d_model]`.

    `prior` `[word]` is added where an answer is due.
    """
    head = np.zeros((len(vocab), s.width))
    head[[vocab.index(word) for word in answers]] = s("out") + prior[:, None] * s("last")
    head[vocab.index(END)] = REST * s("rest")[0]
    return head


def _split(text: str) -> list[str]:
    """What the `Whitespace` pre-tokenizer cuts a text into."""
    return re.findall(r"\w+|[^\w\s]+", text)
