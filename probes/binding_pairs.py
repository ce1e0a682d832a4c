"""Counterfactual contexts for interchange interventions, and what each mechanism predicts.

A donor context is a recipient's with its query entities and its target entities moved among the
groups, or replaced by new ones. When the last token's vector of a donor question about group p is
put into a recipient's question, a positional pointer leads to the recipient's group p, a lexical
one to the group that holds the donor's query entities, a reflexive one to the group that holds the
donor's target entity (arXiv 2510.06182, section 3). A design says how the two kinds of entities
move; the predictions follow from that. We differ from the published construction in moving all
groups at once: one donor context then serves n questions, reaches all n^3 cells, and no cue from a
neighbouring group survives (`transposed` is the published one).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from interp.errors import PromptError, UnknownNameError
from probes.binding_prompts import Matrix
from probes.binding_tasks import BindingTask, Question

Moves = Literal["permuted", "same", "fresh"]


@dataclass(frozen=True)
class Design:
    """How a donor context differs from its recipient.

    Attributes:
        query, target: what becomes of the query entities and of the targets: moved among groups,
            left, or replaced by words that the recipient does not hold.
        tied: both move alike.
        swaps: only the groups concerned are exchanged, as published; `previous` also moves the
            group before the one that is asked for.
    """

    name: str
    what: str
    query: Moves = "permuted"
    target: Moves = "permuted"
    tied: bool = False
    swaps: Literal["", "two", "previous"] = ""


DESIGNS: dict[str, Design] = {
    d.name: d
    for d in (
        Design("main", "query entities and targets move apart: P, L and R all differ"),
        Design("absent_answer", "the donor's answer is not in the recipient: a pointer finds "
               "nothing, a copied answer is said", target="fresh"),
        Design("absent_query", "the donor's query entities are not in the recipient: no L",
               query="fresh"),
        Design("all_new", "no word of the donor is in the recipient: only P is left",
               query="fresh", target="fresh"),
        Design("agree_pl", "only targets move: P and L agree", query="same"),
        Design("agree_pr", "only query entities move: P and R agree", target="same"),
        Design("agree_lr", "whole groups move: L and R agree", tied=True),
        Design("agree_all", "the same context, another question: the most that any may reach",
               query="same", target="same"),
        Design("transposed", "as published: two exchanges, other groups stay", swaps="two"),
        Design("previous", "as published, and the group before is moved as well: whether P is "
               "but 'the one after'", swaps="previous"),
    )
}  # fmt: skip
"""The designs, by name."""

SEPARATES = 4
"""Groups needed to tell P, L, R and no effect apart."""


@dataclass(frozen=True)
class Donor:
    """A donor context.

    Attributes:
        groups: those that are asked for, in turn.
        lexical, reflexive: for each group of the donor, the recipient's group to which its query
            entities, or its target, lead; None where the recipient does not hold them.
    """

    design: str
    matrix: Matrix
    groups: tuple[int, ...]
    lexical: tuple[int | None, ...]
    reflexive: tuple[int | None, ...]


@dataclass(frozen=True)
class EntitySet:
    """A recipient context and its donors. Evaluations of one set are not independent."""

    index: int
    matrix: Matrix
    donors: tuple[Donor, ...]

    @property
    def n(self) -> int:
        """Groups."""
        return len(self.matrix)


@dataclass(frozen=True)
class Sampler:
    """Draws entity sets of a task for one question, from pools that the tokenizer can write."""

    task: BindingTask
    question: Question
    n: int
    collisions: bool = False

    def draw(self, index: int, designs: Sequence[str], *, seed: int, repeats: int = 1) -> EntitySet:
        """Entity set `index`, with `repeats` donors of each design.

        Raises:
            PromptError: a pool too small, or too few groups for the design.
            UnknownNameError: no such design.
        """
        rng = np.random.default_rng([seed, index, self.n])
        matrix, spare = self.words(rng)
        donors = []
        for _ in range(repeats):
            for name in designs:
                if name not in DESIGNS:
                    raise UnknownNameError("design", name, DESIGNS)
                donors.append(self._donor(DESIGNS[name], matrix, spare, rng))
        return EntitySet(index, matrix, tuple(donors))

    def words(self, rng: np.random.Generator) -> tuple[Matrix, dict[int, list[str]]]:
        """A matrix, and by role what is left of its pool."""
        columns, spare = [], {}
        for k, role in enumerate(self.task.roles):
            pool = self.task.pools[role]
            if len(pool) < self.n:
                raise too_small(self.task, role, len(pool), self.n)
            order = [pool[i] for i in rng.permutation(len(pool))]
            columns.append(order[: self.n])
            spare[k] = order[self.n :]
        return tuple(zip(*columns, strict=True)), spare

    def _donor(
        self, design: Design, matrix: Matrix, spare: dict[int, list[str]], rng: np.random.Generator
    ) -> Donor:
        asked = [self.task.roles.index(r) for r in self.question.asked]
        target = self.task.roles.index(self.question.target)
        by_query, by_target, groups = self._moves(design, rng)
        rows = [list(row) for row in matrix]
        for p in range(self.n):
            for k in asked:
                rows[p][k] = matrix[by_query[p]][k]
            rows[p][target] = matrix[by_target[p]][target]
        lexical: list[int | None] = by_query.tolist()
        reflexive: list[int | None] = by_target.tolist()
        fresh = asked * (design.query == "fresh") + [target] * (design.target == "fresh")
        if fresh:
            groups = self._renewed(groups, fresh, spare, rng)
        for k in fresh:
            words = rng.permutation(spare[k])
            for p, word in zip(groups, words, strict=False):
                rows[p][k] = str(word)
                (reflexive if k == target else lexical)[p] = None
        made = tuple(map(tuple, rows))
        return Donor(design.name, made, groups, tuple(lexical), tuple(reflexive))

    def _renewed(
        self, groups: Sequence[int], fresh: Sequence[int], spare: dict[int, list[str]],
        rng: np.random.Generator,
    ) -> tuple[int, ...]:  # fmt: skip
        """Groups for which the pools have a new word in every role that needs one."""
        scarce = min(fresh, key=lambda k: len(spare[k]))
        if not spare[scarce]:
            raise too_small(self.task, self.task.roles[scarce], self.n, self.n + 1)
        return tuple(sorted(rng.permutation(groups)[: len(spare[scarce])].tolist()))

    def _moves(
        self, design: Design, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """For each group of the donor, the recipient's group of its query entities and of its
        target; and the groups to ask for.
        """
        if design.swaps:
            return self._swapped(design, rng)
        stay, groups = np.arange(self.n), tuple(range(self.n))
        if (design.query, design.target) == ("same", "same"):
            return stay, stay, groups
        if self.collisions:
            first, second = rng.permutation(self.n), rng.permutation(self.n)
        else:
            first, second = apart(self.n, rng)
        by_query = stay if design.query == "same" else first
        by_target = stay if design.target == "same" else second
        return by_query, by_query if design.tied else by_target, groups

    def _swapped(
        self, design: Design, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """The published exchanges around one group."""
        least = 1 if design.swaps == "previous" else 0
        p = int(rng.integers(least, self.n))
        others = [i for i in range(self.n) if i not in (p, p - 1)]
        if len(others) < 2 + least:
            raise PromptError(f"design {design.name} needs more than {self.n} groups")
        left, right, *rest = (int(i) for i in rng.permutation(others))
        by_query, by_target = np.arange(self.n), np.arange(self.n)
        by_query[[p, left]] = by_query[[left, p]]
        by_target[[p, right]] = by_target[[right, p]]
        if design.swaps == "previous":
            for by in (by_query, by_target):
                by[[p - 1, rest[0]]] = by[[rest[0], p - 1]]
        return by_query, by_target, (p,)


def apart(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two permutations that differ from each other and from the identity at every place.

    Rotations by two different steps, in a random order of the groups: all cells with three
    different indices are equally likely.

    Raises:
        PromptError: fewer than three groups.
    """
    if n < 3:
        raise PromptError(f"{n} groups cannot hold three pointers apart; use n of 4 or more")
    a, b = rng.choice(np.arange(1, n), 2, replace=False)
    order = rng.permutation(n)
    first, second = np.empty(n, int), np.empty(n, int)
    first[order], second[order] = np.roll(order, a), np.roll(order, b)
    return first, second


def too_small(task: BindingTask, role: str, have: int, need: int) -> PromptError:
    """One line for a pool that cannot fill the groups."""
    return PromptError(
        f"{task.name}: pool {role} has {have} words that this tokenizer writes as one token, "
        f"{need} are needed; use a smaller n or add words"
    )


def recipients(
    entity_set: EntitySet, donor: Donor, p: int, rng: np.random.Generator, *, n: int,
    collisions: bool = False,
) -> Iterator[int]:  # fmt: skip
    """Groups i_N that the recipient may ask for: other than all that the donor points to."""
    taken = {p, donor.lexical[p], donor.reflexive[p]}
    free = [i for i in range(entity_set.n) if collisions or i not in taken]
    yield from (free[k] for k in rng.permutation(len(free))[:n])
