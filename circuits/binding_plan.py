"""Settings of a binding run, and the studies that they ask for.

A study is one task, one target role and one number of groups: everything is measured and concluded
for it alone. What is left of a pool depends on the tokenizer, so a study is refused here, before a
model reads a token, when its words cannot fill the groups.
"""

from dataclasses import dataclass, replace
from typing import Any

from interp.errors import PromptError, UnknownNameError
from probes.binding_pairs import DESIGNS, SEPARATES, too_small
from probes.binding_prompts import check_style, split_words
from probes.binding_tasks import BindingTask, Question, read_task
from probes.filler import KINDS

CONTROLS = (
    "absent_answer", "absent_query", "all_new", "agree_pl", "agree_pr", "agree_lr", "agree_all",
)  # fmt: skip
"""Designs run beside the main one unless others are asked for."""


@dataclass(frozen=True)
class BindSettings:
    """What to measure.

    Attributes:
        tasks: names of families, or task files.
        targets: roles (or labels such as `genre|musician`); all of a task's roles when empty.
        n: numbers of groups.
        style: how the question is put, see `probes.binding_prompts.STYLES`; `auto` tries all.
        layer: residual entering this layer is exchanged; -1 finds it.
        n_sets: entity sets of the main design: the clusters of every interval.
        donors: donor contexts of the main design in each set.
        n_recipients: recipient questions that each donor question goes into.
        n_controls: entity sets in which the control designs are run, one donor each.
        n_preflight, n_sweep: contexts of the preflight; entity sets of the layer sweep.
        controls: designs beside the main one.
        collisions: also cells in which pointers coincide.
        floor: least accuracy, and least probability on the candidates, at which mechanisms are
            named.
        filler, filler_kind: numbers of sentences between two groups, a study each; without or
            with competing entities (`plain`, `competing`).
        heads: also which heads write the pointer and which read it.
        classics: also the older measurements of binding on the same prompts.
        bootstrap: refits of the mixture for its intervals.
    """

    tasks: tuple[str, ...] = ("music_performance",)
    targets: tuple[str, ...] = ()
    n: tuple[int, ...] = (8,)
    style: str = "auto"
    layer: int = -1
    n_sets: int = 8
    donors: int = 3
    n_recipients: int = 2
    n_controls: int = 6
    n_preflight: int = 4
    n_sweep: int = 3
    controls: tuple[str, ...] = CONTROLS
    collisions: bool = False
    floor: float = 0.5
    filler: tuple[int, ...] = (0,)
    filler_kind: str = "plain"
    heads: bool = True
    classics: bool = False
    bootstrap: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Study:
    """One task, question, number of groups and length of filler.

    The task's pools are those that can be used; `dropped` are the words left out.
    """

    task: BindingTask
    question: Question
    n: int
    dropped: tuple[str, ...]
    filler: int = 0

    @property
    def key(self) -> str:
        """Name of the study in tables and files."""
        tail = f"-f{self.filler}" if self.filler else ""
        return f"{self.task.name}-{self.question.label}-n{self.n}{tail}"

    @property
    def place(self) -> str:
        """Where the target stands among its group's roles: first, middle or last."""
        k, m = self.task.roles.index(self.question.target), len(self.task.roles)
        return "first" if k == 0 else "last" if k == m - 1 else "middle"


def plan_studies(tokenizer: Any, settings: BindSettings) -> list[Study]:
    """The studies asked for, in order of task, target and n.

    Raises:
        PromptError, UnknownNameError: a task, target, style or design that is unknown, a pool that
            is too small, fewer groups than the outcomes need.
    """
    check_settings(settings)
    if settings.style != "auto":
        check_style(tokenizer, settings.style)
    studies = []
    for name in settings.tasks:
        whole = read_task(name)
        task, dropped = usable(whole, tokenizer)
        for target in settings.targets or whole.targets:
            question = task.question(target)
            for n in settings.n:
                _check_pools(whole, task, n)
                studies += [Study(task, question, n, dropped, k) for k in settings.filler]
    keys = [s.key for s in studies]
    if len(set(keys)) < len(keys):
        raise PromptError("the same study is asked for twice; name every task, target and n once")
    return studies


def check_settings(settings: BindSettings) -> None:
    """Refuse what cannot be run or cannot conclude anything.

    Raises:
        PromptError, UnknownNameError
    """
    if not settings.n or min(settings.n) < SEPARATES:
        raise PromptError(
            f"n of {min(settings.n, default=0)} groups cannot separate four outcomes (P, L, R, no "
            f"effect); use {SEPARATES} or more"
        )
    for name in settings.controls:
        if name not in DESIGNS:
            raise UnknownNameError("design", name, DESIGNS)
    if settings.filler_kind not in KINDS:
        raise UnknownNameError("kind of filler", settings.filler_kind, KINDS)
    counts = ("n_sets", "donors", "n_recipients", "n_preflight", "n_sweep")
    bad = [c for c in counts if getattr(settings, c) < 1]
    if bad or min(settings.filler, default=-1) < 0 or not 0 <= settings.floor <= 1:
        raise PromptError(
            f"{bad[0] if bad else 'filler or floor'} is out of range; counts are 1 or more, filler "
            "0 or more, the floor between 0 and 1"
        )


def usable(task: BindingTask, tokenizer: Any) -> tuple[BindingTask, tuple[str, ...]]:
    """The task with the words that the tokenizer writes as one token, and those left out."""
    dropped: list[str] = []
    pools = {}
    for role, words in task.pools.items():
        split = set(split_words(tokenizer, words))
        pools[role] = tuple(w for w in words if w not in split)
        dropped += [w for w in words if w in split]
    return replace(task, pools=pools), tuple(dropped)


def _check_pools(whole: BindingTask, task: BindingTask, n: int) -> None:
    for role, words in task.pools.items():
        if len(words) < n + 1:  # one word more: the designs with an absent entity need it
            split = [w for w in whole.pools[role] if w not in words]
            error = too_small(task, role, len(words), n + 1)
            told = f" ({', '.join(split[:6])} split into several tokens)" if split else ""
            raise PromptError(f"{error}{told}")
