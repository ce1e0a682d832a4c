"""Gradients of a number with respect to activations of a suffix, by one backward pass.

What attribution patching needs (Nanda 2023; arXiv 2310.10348): at every asked-for site the
activation and the gradient of an objective. The weights take no part and are left untouched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp.backends import cache as caches
from interp.backends.edits import INPUT_SITES, RESIDUAL_SITES, check_site
from interp.backends.residual import visiting
from interp.backends.run import call
from interp.backends.session import LayerCall, Session
from interp.errors import SiteError
from interp.layout import packed
from interp.sites import Site
from interp.trace import Gradients, Prefix

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

Objective = Callable[[Tensor, Mapping[Site, Tensor]], Tensor]


def gradients(
    model: "HFModel",
    prefix: Prefix,
    suffix: Sequence[int],
    *,
    sites: Sequence[Site],
    objective: Objective,
    logits: Sequence[int],
    at: int,
    values: Mapping[Site, Tensor],
) -> Gradients:
    """See `HFModel.gradients`."""
    for site in sites:
        check_site(site, model.anatomy, verb="read")
        if site.head is not None:
            raise SiteError(f"gradients: ask for all heads of a layer, not for {site}")
    foreign = [site for site in values if site not in sites]
    if foreign:
        raise SiteError(f"gradients: {foreign[0]} has a value but is not among the sites")
    probes = _Probes(model, sites, values)
    layout = packed(at, [len(suffix)], [at])
    cache = caches.extending(prefix.keys, prefix.values, at, keep=False)
    session = Session(layout.to(model.device), on_layer=probes.on_layer, on_inputs=probes.on_inputs)
    residual = {s: [probes.visit(s)] for s in sites if s.kind in RESIDUAL_SITES}
    with ExitStack() as stack:
        stack.enter_context(_frozen(model.hf))
        stack.enter_context(model.attending(grad=True))
        stack.enter_context(session.running())
        stack.enter_context(visiting(model.anatomy, residual))
        rows = [p % len(suffix) for p in logits]
        out = call(model, torch.tensor(suffix), layout, cache, rows).float()
        value = objective(out, probes.activations)
        leaves = [probes.leaves[s] for s in sites]
        found = torch.autograd.grad(value, leaves, allow_unused=True)
    grads = {
        s: torch.zeros_like(leaf).cpu() if g is None else g.float().cpu()
        for s, leaf, g in zip(sites, leaves, found, strict=True)
    }
    kept = {s: a.detach().float().cpu() for s, a in probes.activations.items()}
    return Gradients(value.item(), out.detach().cpu(), kept, grads)


class _Probes:
    """A zero added at every site: its gradient is that of the activation."""

    def __init__(
        self, model: "HFModel", sites: Sequence[Site], values: Mapping[Site, Tensor]
    ) -> None:
        self.anatomy = model.anatomy
        self.values = values
        self.sites = set(sites)
        self.leaves: dict[Site, Tensor] = {}
        self.activations: dict[Site, Tensor] = {}

    def _probed(self, site: Site, x: Tensor) -> Tensor:
        """`x` `[pos, ...]` with a probe in it; as it is where the site was not asked for."""
        if site not in self.sites:
            return x
        if site in self.values:
            given = self.values[site]
            if given.shape != x.shape:
                raise SiteError(
                    f"gradients: the value at {site} has shape {tuple(given.shape)}, expected "
                    f"{tuple(x.shape)}"
                )
            x = given.detach().to(x)
        leaf = torch.zeros_like(x, requires_grad=True)
        self.leaves[site] = leaf
        self.activations[site] = x + leaf
        return self.activations[site]

    def on_inputs(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        layer, n_new = self.anatomy.layer_of(module), query.shape[2]
        out = []
        for kind, x in zip(INPUT_SITES, (query, key, value), strict=True):
            old, new = x[:, :, :-n_new], x[0, :, -n_new:].transpose(0, 1)
            probed = self._probed(Site(kind, layer), new)  # type: ignore[arg-type]
            same = probed is new
            out.append(x if same else torch.cat([old, probed.transpose(0, 1)[None]], dim=2))
        return out[0], out[1], out[2]

    def on_layer(self, call: LayerCall) -> Tensor:
        return self._probed(Site("z", self.anatomy.layer_of(call.module)), call.z)

    def visit(self, site: Site) -> Callable[[Tensor], Tensor]:
        return lambda x: self._probed(site, x[0])[None]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No weight asks for a gradient; afterwards each does what it did."""
    asking = [p for p in module.parameters() if p.requires_grad]
    try:
        for p in asking:
            p.requires_grad_(False)
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)
