"""One trial of a saved scan, with the model at hand: read it again, look closer, ablate heads.

The scan's settings make its prompts again, token for token; what was read last is kept, so that
another question about the same context costs a suffix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from circuits.ablations import ABLATIONS, Ablation, ablation, edits_of, scope
from circuits.attention.capture import capture_rows
from circuits.attention.record import TrialRows
from circuits.attention.window import edges, pooled, trial_tokens
from circuits.controls import layer_matched
from circuits.given import with_options
from circuits.interventions import generated_texts, run_everywhere, run_sets
from circuits.plan import ScanPlan, ScanSettings, make_plan
from circuits.station import Station
from interp.errors import PromptError, ResultError, UnknownNameError
from interp.sites import Edit, Head
from interp.trace import Prefix, RowRead
from probes.cases import Case, Scene, scenes
from probes.grid import Context, Trial

if TYPE_CHECKING:
    from circuits.scan_result import ScanResult
    from interp.backends.hf import HFModel

REFERENCE_LENGTH, REFERENCE_CONTEXTS = 512, 4
"""Contexts of a mean ablation's reference: other prompts than any of the scan's."""
N_MOVED = 5


@dataclass(frozen=True, eq=False)
class WhatIf:
    """One trial with a set of heads ablated, beside matched random sets.

    Attributes:
        before, after, random: log-probability of the answer, nats: not ablated, ablated, and with
            each random set ablated.
        said_before, said_after: what the model says by greedy decoding.
        looked: attention of every head on the needle, mean over the answer's rows, plain and
            ablated; NaN for the ablated heads themselves, whose rows are read before they are
            changed; empty where edits reach into the context.
    """

    heads: tuple[Head, ...]
    ablation: Ablation
    scope: str
    answer: str
    before: float
    after: float
    random: np.ndarray
    said_before: str
    said_after: str
    looked: Float[np.ndarray, "run layer head"]


class TrialDesk:
    """Trials of one scan, by name.

    Raises:
        ResultError: the model is not the scan's (other weights, tokenizer).
    """

    def __init__(self, model: "HFModel", result: "ScanResult") -> None:
        made, source = result.provenance, model.source
        if made.weight_hash != source.weight_hash or made.tokenizer_hash != source.tokenizer_hash:
            raise ResultError(
                f"{source.name} is not the model of this run ({made.model}): weights or tokenizer "
                "differ; attach the model that was scanned"
            )
        if result.settings.get("preset", "default") != "default":
            raise ResultError("prompts of a preset are not made again; attach a default scan")
        self.model, self.settings = model, _settings(result)
        self._plan: ScanPlan | None = None
        self._station: Station | None = None
        self._read: tuple[int, Prefix] | None = None

    @property
    def plan(self) -> ScanPlan:
        """The scan's prompts, made once."""
        if self._plan is None:
            self._plan = make_plan(self.model, self.settings)
        return self._plan

    def rows(self, name: str) -> TrialRows:
        """Rows of a trial, as a scan keeps them."""
        place, trial = self._find(name)
        context = self.plan.contexts[place]
        prefix, seed = self._prefix(place, trial.length), self.settings.seed
        return capture_rows(self.model, prefix, context, trial, place=place, seed=seed)

    def context_text(self, place: int) -> tuple[str, ...]:
        """Tokens of a context as text."""
        return tuple(self.model.tokenizer.decode([t]) for t in self.plan.contexts[place].tokens)

    def window(
        self, name: str, head: Head, zoom: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray]:
        """Bounds of queries, bounds of keys, and the largest weight of each cell.

        Args:
            zoom: queries from and to, keys from and to; cut to the trial.

        Raises:
            UnknownNameError, SiteError: no such trial, head or window.
        """
        place, trial = self._find(name)
        self._known([head])
        tokens = trial_tokens(self.plan.contexts[place], trial)
        q0, q1, k0, k1 = (min(max(0, int(v)), len(tokens)) for v in zoom)
        if q1 <= q0 or k1 <= k0:
            raise ResultError(f"window {list(zoom)} is empty; the trial has {len(tokens)} tokens")
        q, k = edges(q0, q1), edges(k0, k1)
        prefix = self._prefix(place, trial.length)
        found = pooled(self.model, prefix, tokens, [head], q_edges=q, k_edges=k)
        return q, k, found[0]

    def what_if(
        self, name: str, heads: Sequence[Head], *, how: str, where: str, draws: int, seed: int = 0
    ) -> WhatIf:
        """Ablate heads in one trial, and as many in each of `draws` matched random sets.

        Raises:
            UnknownNameError, ResultError, PromptError: see the parts; a twin or a layer is lacking.
        """
        chosen, limits = ablation(how), scope(where)
        self._known(heads)
        if limits == "everywhere" and how == "knockout":
            raise PromptError("knockout is not defined everywhere; choose scope suffix or decode")
        drawn = layer_matched(heads, self.model.spec.heads(), n_draws=draws, seed=seed)
        place, trial = self._find(name)
        scene = self._scene(place, trial)
        case = scene.cases[0]
        if chosen.needs == "twin" and not case.twin:
            raise PromptError("this needle has no other value as long; choose another trial")
        sets: list[Sequence[Head]] = [(), heads, *drawn]
        if limits == "everywhere":
            means = self._reference().means(chosen)
            found = run_everywhere(
                self.model, scene, sets, how=chosen, means=means, tick=lambda: None
            )[0]
            said, looked = ["", ""], np.empty((0, 0, 0))
        else:
            prefix, rebased, m = self._reference().ready(scene, case, chosen, scope=limits)
            found = run_sets(self.model, prefix, rebased, sets, how=chosen, m=m)
            said = generated_texts(self.model, prefix, rebased, sets[:2], how=chosen, m=m)
            looked = self._looked(prefix, rebased, edits_of(sets[:2], chosen, m))
        scores = found[:, 0]
        return WhatIf(tuple(heads), chosen, where, trial.value, float(scores[0]),
                      float(scores[1]), scores[2:], said[0], said[1], looked)  # fmt: skip

    # -- parts ------------------------------------------------------------------------------

    def _find(self, name: str) -> tuple[int, Trial]:
        for place, group in enumerate(self.plan.trials):
            for trial in group:
                if trial.name == name:
                    return place, trial
        raise UnknownNameError("trial", name, [t.name for g in self.plan.trials for t in g])

    def _known(self, heads: Sequence[Head]) -> None:
        missing = set(heads) - set(self.model.spec.heads())
        if missing:
            raise ResultError(f"the model has no head {', '.join(map(str, sorted(missing)))}")

    def _prefix(self, place: int, length: int) -> Prefix:
        """The first tokens of a context; only what was not read yet is read."""
        tokens = self.plan.contexts[place].tokens
        if self._read is None or self._read[0] != place:
            self._read = (place, self.model.prefill(tokens[:length]))
        elif len(self._read[1]) < length:
            known = self._read[1]
            self._read = (place, self.model.grow(known, tokens[len(known) : length]))
        return self._read[1].crop(length)

    def _scene(self, place: int, trial: Trial) -> Scene:
        context: Context = self.plan.contexts[place]
        # a station tells contexts apart by index: another length is another context to it
        index = place * 2**24 + trial.length
        cut = replace(context, index=index, tokens=context.tokens[: trial.length])
        return scenes([cut], [[trial]], fmt=self.plan.fmt)[0]

    def _reference(self) -> Station:
        if self._station is None:
            length = min(REFERENCE_LENGTH, *self.plan.lengths)
            others = replace(
                self.settings, lengths=(length,), n_haystacks=REFERENCE_CONTEXTS, mode="shared",
                seed=self.settings.seed + 1,
            )  # fmt: skip
            plan = make_plan(self.model, others)
            reference = scenes(plan.contexts, plan.trials, fmt=plan.fmt)
            self._station = Station(self.model, reference, scope="suffix", context=True)
        return self._station

    def _looked(self, prefix: Prefix, case: Case, edits: list[Edit]) -> np.ndarray:
        """Attention on the needle of a plain run and of one with edits in row 1."""
        rows, keys = tuple(case.rows), torch.tensor(list(case.needle))
        named = keys.expand(len(rows), -1)
        read = RowRead((rows, rows), keys=(named, named), peaks=False)
        trace = self.model.extend(prefix, [case.suffix] * 2, read=[read], edits=edits).rows[0]
        assert trace.at_keys is not None
        mass = trace.at_keys.sum(-1)
        out = np.stack([mass[:, :, trace.suffix == i].mean(-1).numpy() for i in range(2)])
        for edit in edits:
            out[1, edit.site.layer, edit.site.head] = np.nan
        return out


def _settings(result: "ScanResult") -> ScanSettings:
    known = ScanSettings.__dataclass_fields__
    return with_options(ScanSettings(), {k: v for k, v in result.settings.items() if k in known})


def most_moved(found: WhatIf, n: int = N_MOVED) -> list[tuple[Head, float]]:
    """Heads whose attention on the needle changed most, with the change; largest first."""
    if not found.looked.size:
        return []
    change = np.nan_to_num(found.looked[1] - found.looked[0])
    order = np.argsort(-np.abs(change), axis=None, kind="stable")[:n]
    return [(Head(*divmod(int(i), change.shape[1])), float(change.flat[i])) for i in order]


NAMED = {a.name: f"{a.name}: {a.formula}" for a in ABLATIONS.values()}
"""What each ablation does, for a person who chooses one."""
