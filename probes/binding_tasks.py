"""Binding tasks: groups of entities stated in a context, and a question that needs one binding.

The ten families of *Mixing Mechanisms* (arXiv 2510.06182), in our own wording with our own words.
A family is data: a clause with one slot a role, questions that name some roles and ask for another,
and a pool of words for each role. A user's task is a YAML or JSON file of the same form.

    task = read_task("music_performance")          # or "my_task.yaml"
    task.question("genre")                          # the musician and the instrument are named
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

from interp.errors import PromptError, UnknownNameError

Piece = tuple[str, str | None]
"""A stretch of text; the role whose word stands there, or None for the text between."""

REQUIRED = ("name", "roles", "clause", "questions", "pools")
OPTIONAL = {
    "title": "",
    "prefix": "",
    "opening": " ",
    "joiner": ", ",
    "last_joiner": ", and ",
    "end": ".",
}
"""Fields that a task may leave out, and what stands there then."""


@dataclass(frozen=True)
class Question:
    """A question: `ask` for a chat, `complete` the beginning of a sentence that the answer ends."""

    target: str
    ask: str
    complete: str

    @property
    def asked(self) -> tuple[str, ...]:
        """The roles that the question names: the query entities."""
        return tuple(role for _, role in pieces(self.ask) if role is not None)

    @property
    def label(self) -> str:
        """Such as `genre|musician+instrument`: the target, and by what it is asked for."""
        return f"{self.target}|{'+'.join(self.asked)}"


@dataclass(frozen=True)
class BindingTask:
    """A family of prompts.

    Attributes:
        roles: two or three, in the order in which a clause names them.
        prefix, opening: what stands before the first clause.
        clause: text of one group, a slot a role; a literal brace is doubled, as in `str.format`.
        joiner, last_joiner, end: between clauses, before the last, behind it.
        questions: in order; the first with a target is the default for it.
        pools: words by role; no word is in two pools.
    """

    name: str
    title: str
    roles: tuple[str, ...]
    prefix: str
    opening: str
    clause: str
    joiner: str
    last_joiner: str
    end: str
    questions: tuple[Question, ...]
    pools: Mapping[str, tuple[str, ...]]

    @property
    def targets(self) -> tuple[str, ...]:
        """Roles that can be asked for, in the order of the clause."""
        asked = {q.target for q in self.questions}
        return tuple(role for role in self.roles if role in asked)

    def question(self, target: str) -> Question:
        """The question for a target role, or for a label such as `genre|musician`.

        Raises:
            UnknownNameError: the task asks for no such role.
        """
        for question in self.questions:
            if target in (question.target, question.label):
                return question
        raise UnknownNameError("target role", target, [*self.targets, *self._labels()])

    def _labels(self) -> list[str]:
        return [q.label for q in self.questions]


def read_task(source: str | Path | Mapping[str, Any]) -> BindingTask:
    """A task by name, from a YAML or JSON file, or from the mapping that such a file holds.

    Raises:
        UnknownNameError: neither a known name nor a file.
        PromptError: a file that is no task; the line says what is missing or wrong.
    """
    if isinstance(source, Mapping):
        return _checked(source, "the task")
    if str(source) in task_names():
        data = _bundled()
        row = next(t for t in data["tasks"] if t["name"] == source)
        return _checked(row, str(source), shared=data["shared"])
    path = Path(source)
    if not path.suffix and not path.exists():
        raise UnknownNameError("binding task", str(source), task_names())
    return _checked(_parsed(path), str(path))


def task_names() -> tuple[str, ...]:
    """Names of the ten families."""
    return tuple(t["name"] for t in _bundled()["tasks"])


def pieces(template: str) -> list[Piece]:
    """A template cut at its slots.

    Raises:
        PromptError: a brace that opens no slot.
    """
    out: list[Piece] = []
    try:
        for text, slot, _, _ in Formatter().parse(template):
            if text:
                out.append((text, None))
            if slot is not None:
                out.append((slot, slot))
    except ValueError as error:
        raise PromptError(f"{template!r}: {error}; double a brace that is meant as text") from None
    return out


@functools.cache
def _bundled() -> dict[str, Any]:
    text = (resources.files("probes") / "data" / "binding_tasks.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def _parsed(path: Path) -> Any:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} cannot be read ({error}); name a task or its file") from None
    try:
        if path.suffix == ".json":
            return json.loads(text)
        import yaml

        return yaml.safe_load(text)
    except Exception as error:  # the two parsers have nothing in common to catch
        reason = str(error).splitlines()[0]
        raise PromptError(f"{path} is no YAML or JSON ({reason}); see the README's task") from None


def _checked(row: Any, where: str, *, shared: Mapping[str, Sequence[str]] = {}) -> BindingTask:  # noqa: B006
    """The task of a parsed file."""
    if not isinstance(row, Mapping):
        raise PromptError(f"{where} holds no mapping; a task has {', '.join(REQUIRED)}")
    missing = [f for f in REQUIRED if not row.get(f)]
    unknown = [f for f in row if f not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown:
        told = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(unknown)}"
        raise PromptError(f"{where} {told}; a task has {', '.join((*REQUIRED, *OPTIONAL))}")
    roles = tuple(map(str, row["roles"]))
    if len(roles) not in (2, 3) or len(set(roles)) != len(roles):
        raise PromptError(f"{where}: a task has 2 or 3 different roles, got {', '.join(roles)}")
    texts = {f: str(row.get(f, default)) for f, default in OPTIONAL.items()}
    found = [role for _, role in pieces(str(row["clause"])) if role is not None]
    if found != list(roles):
        raise PromptError(
            f"{where}: the clause must hold each role once and in order, {_slots(roles)}; it holds "
            f"{_slots(found) or 'none'}"
        )
    questions = tuple(_question(q, roles, where) for q in row["questions"])
    pools = _pools(row["pools"], roles, shared, where)
    return BindingTask(
        name=str(row["name"]), roles=roles, clause=str(row["clause"]), questions=questions,
        pools=pools, **texts,
    )  # fmt: skip


def _question(row: Any, roles: Sequence[str], where: str) -> Question:
    if not isinstance(row, Mapping) or not {"target", "ask", "complete"} <= set(row):
        raise PromptError(f"{where}: a question has target, ask and complete, got {row!r}")
    question = Question(str(row["target"]), str(row["ask"]), str(row["complete"]))
    both = [sorted(r for _, r in pieces(t) if r) for t in (question.ask, question.complete)]
    if question.target not in roles:
        raise PromptError(f"{where}: target {question.target!r} is no role of {', '.join(roles)}")
    if not both[0] or both[0] != both[1] or len(set(both[0])) < len(both[0]):
        raise PromptError(
            f"{where}: ask and complete must name the same roles, each once; got "
            f"{_slots(both[0]) or 'none'} and {_slots(both[1]) or 'none'}"
        )
    wrong = [r for r in both[0] if r not in roles or r == question.target]
    if wrong:
        raise PromptError(
            f"{where}: a question for {question.target} names other roles only, not {_slots(wrong)}"
        )
    return question


def _pools(
    row: Any, roles: Sequence[str], shared: Mapping[str, Sequence[str]], where: str
) -> dict[str, tuple[str, ...]]:
    if not isinstance(row, Mapping) or set(row) != set(roles):
        raise PromptError(f"{where}: pools must name the roles {', '.join(roles)} and no other")
    pools = {
        role: tuple(shared[p[1:]] if isinstance(p, str) and p[1:] in shared else map(str, p))
        for role, p in ((role, row[role]) for role in roles)
    }
    seen: dict[str, str] = {}
    for role, words in pools.items():
        for word in words:
            if word.strip() != word or not word:
                raise PromptError(f"{where}: {word!r} in pool {role} is empty or has spaces around")
            if word.lower() in seen:
                raise PromptError(
                    f"{where}: {word!r} stands in pools {seen[word.lower()]} and {role}, or twice; "
                    "every word belongs to one role"
                )
            seen[word.lower()] = role
    return pools


def _slots(roles: Sequence[str]) -> str:
    return ", ".join(f"{{{role}}}" for role in roles)
