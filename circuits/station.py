"""Questions made ready to be run: prefixes read once, twins, mean outputs, generated text.

A station serves one set of scenes under one scope. It keeps the prefixes of the scene at hand and
nothing else, so that memory does not grow with the number of contexts.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from circuits import interventions as run
from circuits.ablations import Ablation, Material, Scope
from circuits.case_metrics import FORCED, GENERATED
from interp.trace import Prefix
from probes.cases import Case, Scene

if TYPE_CHECKING:
    from interp.backends.hf import HFModel


class Station:
    """Where cases of scenes are run.

    Args:
        reference: scenes of a mean ablation.
        scope: where edits act, unless a call says otherwise; `everywhere` counts as `suffix`
            here, its prefixes being made by `interventions.run_everywhere`.
        context: mean outputs are wanted for tokens of the context too.
        generate: text is generated beside the forced metrics.
    """

    def __init__(
        self, model: "HFModel", reference: Sequence[Scene], *, scope: Scope,
        context: bool = False, generate: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.reference = model, reference
        self.scope: Scope = "decode" if scope == "decode" else "suffix"
        self.context, self.generate = context, generate
        self.metrics = FORCED + (GENERATED if generate else ())
        self._means: dict[str, Tensor] | None = None
        self._prefixes: dict[tuple[int, bool], Prefix] = {}

    def run(
        self, scene: Scene, case: Case, sets: list, *, how: Ablation, on_twin: bool = False,
        scope: Scope | None = None,
    ) -> np.ndarray:  # fmt: skip
        """All metrics `[set, metric]`; generated ones are left NaN, but for a single empty set."""
        prefix, rebased, m = self.ready(scene, case, how, on_twin=on_twin, scope=scope)
        forced = run.run_sets(self.model, prefix, rebased, sets, how=how, m=m)
        out = np.full((len(sets), len(self.metrics)), np.nan)
        out[:, : len(FORCED)] = forced
        if self.generate and not any(sets):
            out[:, len(FORCED) :] = self.generated(scene, case, sets, how, on_twin=on_twin)
        return out

    def generated(
        self, scene: Scene, case: Case, sets: list, how: Ablation, *, on_twin: bool = False
    ) -> np.ndarray:
        """`contains` and `rouge` `[set, 2]`."""
        prefix, rebased, m = self.ready(scene, case, how, on_twin=on_twin)
        return run.generate_sets(self.model, prefix, rebased, sets, how=how, m=m)

    def ready(
        self, scene: Scene, case: Case, how: Ablation, *, on_twin: bool = False,
        scope: Scope | None = None,
    ) -> tuple[Prefix, Case, Material]:  # fmt: skip
        """Prefix, rebased case and material for edits on it."""
        chosen = scope or self.scope
        here = self.prefix(scene, twin=on_twin)
        prefix, rebased = run.rebased(self.model, here, case, chosen)
        twin: Mapping[int, Tensor] = {}
        if how.needs == "twin" and case.twin:
            other = self.prefix(scene, twin=not on_twin)
            twin = run.suffix_outputs(self.model, *run.rebased(self.model, other, case, chosen))
        return prefix, rebased, run.material(rebased, means=self.means(how), twin=twin)

    def prefix(self, scene: Scene, *, twin: bool) -> Prefix:
        """Read once; only the prefixes of the scene at hand are kept."""
        key = (scene.context.index, twin)
        if key not in self._prefixes:
            self._prefixes = {k: p for k, p in self._prefixes.items() if k[0] == key[0]}
            tokens = scene.twin if twin else scene.context.tokens
            self._prefixes[key] = self.model.prefill(tokens)
        return self._prefixes[key]

    def means(self, how: Ablation) -> dict[str, Tensor]:
        """Mean outputs by position class, if the ablation is made of them; measured once."""
        if how.needs != "means":
            return {}
        if self._means is None:
            self._means = run.reference_means(self.model, self.reference, context=self.context)
        return self._means
