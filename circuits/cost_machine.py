"""How fast this machine does each kind of work of `circuits.cost`: a few short forwards, timed.

No constant is fitted to runs that are predicted later. Every figure is the best of a few
repetitions, since other work on a machine only ever adds time, and most are differences: of three
layers and one (so that what surrounds the layers drops out, and a large model is measured by two of
its layers), of a forward with rows or logits and the same without. A difference of two noisy times
can be absurd, so none may make work faster than twice the products of the layers.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from circuits.cost import PACK, TERMS, Forward, Sizes, sizes_of
from interp.sites import Edit, Head, Site
from interp.trace import Prefix, RowRead, SiteRead

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

REPEATS = 4
LONG, BEHIND = 2048, 1024
"""Tokens of the plain forward whose attention is timed, and of the cache that stands before
suffixes; shorter where the model's context is."""
SUFFIX, READ, TOLD = 32, 32, 128
"""Tokens of a suffix in a pack; of these, rows read; rows of logits."""
EDITED = 32
"""Rows that are edited, twice each."""
HEADS, KEYS = 128, 16
"""Heads whose rows are kept whole, and the heaviest keys that are looked for in each."""
LEAST = 1e-9
"""Seconds: what noise made negative counts as that."""
FASTER = 2.0
"""How many times faster than the products of the layers any other work can be, at most: what noise
lets look faster is held there."""


@dataclass(frozen=True)
class Machine:
    """Amounts a second, by term of `circuits.cost.TERMS`, and how long it took to find them."""

    speed: Mapping[str, float]
    about: str
    took: float = 0.0
    threads: int = 1

    def seconds(self, amounts: Mapping[str, float]) -> float:
        """Time of amounts: the sum over terms, as on a CPU that does one thing after the other."""
        return sum(self.by_term(amounts).values())

    def by_term(self, amounts: Mapping[str, float]) -> dict[str, float]:
        """Seconds of each term."""
        return {name: amounts.get(name, 0.0) / self.speed[name] for name in TERMS}


@dataclass(eq=False)
class _Bench:
    """The forwards that are timed, and the lengths at which they are."""

    model: "HFModel"
    sizes: Sizes
    far: int = 0
    lengths: tuple[int, int] = (0, 0)
    told: int = 0
    deeper: int = 2

    # -- what is timed ----------------------------------------------------------------------

    def layers(self, n: int, count: int = 1, prefix: Prefix | None = None, *, top: int = 1) -> None:
        """The first `top` layers on `count` suffixes that differ, and nothing else."""
        read = SiteRead((Site("resid_post", top - 1),), ((-1,),) * count)
        self.model.extend(prefix, self._words(n, count), read=[read], logits=[()] * count)

    def whole(self, n: int, prefix: Prefix, *, rows: int = 0, logits: int = 0) -> None:
        """All layers on one suffix, with attention rows read or logits made at its end."""
        last = self.sizes.n_layers - 1
        read: list[Any] = [SiteRead((Site("resid_post", last),), ((-1,),))]
        if rows:
            keys = torch.zeros(rows, 8, dtype=torch.long)
            read.append(RowRead((tuple(range(n - rows, n)),), keys=(keys,)))
        wanted = tuple(range(n - logits, n))
        trace = self.model.extend(prefix, self._words(n, 1), read=read, logits=[wanted])
        if logits:
            trace.logits.log_softmax(-1)

    def _words(self, n: int, count: int) -> list[list[int]]:
        # no two alike: rows of equal tokens would share their lower layers
        v = self.sizes.d_vocab
        return [[(7 * i + 13 * k + i * k) % v for i in range(n)] for k in range(count)]

    def _cached(self, n: int) -> Prefix:
        """Keys and values of no text: time does not depend on what they say."""
        s, device = self.sizes, self.model.device
        shape = (1, s.n_kv_heads, n, s.d_head)

        def made() -> tuple[torch.Tensor, ...]:
            return tuple(
                torch.randn(shape, device=device, dtype=self.model.dtype) for _ in range(s.n_layers)
            )

        return Prefix(torch.zeros(n, dtype=torch.long), made(), made(), None)

    # -- terms ------------------------------------------------------------------------------

    def cases(self) -> dict[str, Callable[[], None]]:
        """What is timed, by name."""
        one, far = self._cached(1), self._cached(self._fits(BEHIND))
        short, long, count = self._fits(PACK), self._fits(LONG), PACK // SUFFIX
        told, low, high = self._fits(TOLD), 1, min(3, self.sizes.n_layers)
        self.far, self.lengths, self.told = len(far), (short, long), told
        self.deeper = high - low
        return {
            "step": lambda: self.whole(1, one),
            "step far": lambda: self.whole(1, far),
            "few": lambda: self.whole(8, one),
            "short low": lambda: self.layers(short, top=low),
            "short": lambda: self.layers(short, top=high),
            "long low": lambda: self.layers(long, top=low),
            "long": lambda: self.layers(long, top=high),
            "near low": lambda: self.layers(SUFFIX, count, one, top=low),
            "near": lambda: self.layers(SUFFIX, count, one, top=high),
            "far low": lambda: self.layers(SUFFIX, count, far, top=low),
            "far": lambda: self.layers(SUFFIX, count, far, top=high),
            "bare": lambda: self.whole(READ, far),
            "rows": lambda: self.whole(READ, far, rows=READ),
            "untold": lambda: self.whole(told, one),
            "told": lambda: self.whole(told, one, logits=told),
            "not kept": lambda: self.keep(far, 1),
            "kept": lambda: self.keep(far, HEADS),
            "unedited": lambda: self.edit(one, 0),
            "edited": lambda: self.edit(one, EDITED),
        }

    def speeds(self, took: Mapping[str, float]) -> dict[str, float]:
        """Amounts a second, from the best seconds of each case."""

        def layer(name: str) -> float:
            # what surrounds the layers takes something, but not half of the time
            most = took[name] / (self.deeper + 1)
            if self.deeper == 0:
                return most
            return min(max((took[name] - took[f"{name} low"]) / self.deeper, most / 2), most)

        short, long = (self._amounts(Forward(n, layers=1, plain=True)) for n in self.lengths)
        near, far = (self._amounts(Forward(PACK, n, layers=1)) for n in (1, self.far))
        pairs = [a["causal"] + a["masked"] for a in (short, long)]
        # at the shorter length attention is a few percent: counted as if it were a product
        dense = (short["dense"] + pairs[0]) / max(layer("short"), LEAST)
        most = FASTER * dense
        step = self._amounts(Forward(1, self.far))["join"] - self._amounts(Forward(1, 1))["join"]
        weights = self._amounts(Forward(1))["step"]
        # a copy is written as well as read, the weights are only read
        join = _rate(step, took["step far"] - took["step"], FASTER * weights / took["step"])
        rows = self._amounts(Forward(READ, self.far, rows=READ))["rows"]
        logits = self._amounts(Forward(self.told, 1, logits=self.told))["logits"]
        behind = layer("far") - layer("near") - (far["join"] - near["join"]) / join
        return {
            "step": weights / took["step"],
            "few": weights / took["few"],
            "dense": dense,
            "causal": _rate(pairs[1], layer("long") - long["dense"] / dense, most),
            "masked": _rate(far["masked"] - near["masked"], behind, most),
            "rows": _rate(rows, took["rows"] - took["bare"], most),
            "logits": _rate(logits, took["told"] - took["untold"], most),
            "join": join,
            "edits": _rate(2 * EDITED, took["edited"] - took["unedited"], most),
            "kept": _rate(8 * (self._heads(HEADS) - 1), took["kept"] - took["not kept"], most),
        }

    def keep(self, prefix: Prefix, heads: int) -> None:
        """Rows of heads brought back whole; the heaviest keys of each, and sums by region."""
        asked = RowRead((tuple(range(8)),), whole=self._some(heads), peaks=False)
        found = self.model.extend(prefix, self._words(8, 1), read=[asked]).rows[0].whole
        for row in (r for many in found.values() for r in many):
            torch.topk(row, min(KEYS, len(row)))
            np.bincount(np.zeros(len(row), np.int64), row.numpy())

    def edit(self, prefix: Prefix, n: int) -> None:
        """Single tokens, in n of which a head's pattern and another one's output are changed."""
        heads, made = self.model.spec.heads(), []
        for i in range(n):
            a, b = heads[i * 7 % len(heads)], heads[i * 11 % len(heads)]
            made.append(Edit(Site("pattern", a.layer, a.head), "knockout", rows=(i,),
                             positions=(0,), keys=(0,)))  # fmt: skip
            made.append(Edit(Site("z", b.layer, b.head), "zero", rows=(i,), positions=(0,)))
        self.model.extend(prefix, self._words(1, EDITED), edits=made)

    def _some(self, n: int) -> tuple[Head, ...]:
        return tuple(self.model.spec.heads()[:n])

    def _heads(self, n: int) -> int:
        return len(self._some(n))

    def _amounts(self, one: Forward) -> dict[str, float]:
        return one.amounts(self.sizes)

    def _fits(self, n: int) -> int:
        """So many tokens, or what the model's context leaves beside a pack's suffixes."""
        limit = self.sizes.limit
        return n if limit is None else max(2, min(n, limit - 2 * SUFFIX))


def measure_machine(model: "HFModel", *, repeats: int = REPEATS) -> Machine:
    """Time a few forwards: seconds for a small model, by a few of its layers for a large one."""
    start = time.perf_counter()
    bench = _Bench(model, sizes_of(model))
    cases = bench.cases()
    took = dict.fromkeys(cases, float("inf"))
    bench.layers(64)
    # in turn, so that a busy moment of the machine does not meet all runs of one case
    for _ in range(repeats):
        for name, case in cases.items():
            took[name] = min(took[name], seconds(case))
    threads = torch.get_num_threads()
    device = model.device.type
    about = f"{device}, {threads} threads" if device == "cpu" else device
    return Machine(bench.speeds(took), about, time.perf_counter() - start, threads)


def seconds(work: Callable[[], Any]) -> float:
    """How long a piece of work takes, once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _rate(amount: float, took: float, most: float) -> float:
    """Amount a second; a difference that noise made too small means `most`."""
    return amount / max(took, amount / most)
