"""Subspaces learned by gradient: the gradient of a patched run, and what held-out sets show."""

import bindings
import pytest
import torch

from circuits.binding_das import learned_basis
from circuits.binding_subspace import subspaces
from circuits.interchange import ask, entering, last_token, patched_logits
from interp.errors import SiteError


def test_the_gradient_is_that_of_the_patched_run():
    model, truth, ready, _ = bindings.ready("mixture")
    matrix = ready.sampler().draw(0, ["main"], seed=0).matrix
    asked = ask(model, [ready.writer.write(matrix, g) for g in range(8)])
    layer = truth.pointer_layer
    at, other = (last_token(model, asked, g, [layer]) for g in (2, 5))
    ids = [ready.answers.token(w) for w in asked.prompts[0].candidates]
    vector, site = (at.states[layer] + other.states[layer]) / 2, entering(model, layer)

    def loss(logits, _):
        return -logits[0, ids].log_softmax(-1)[3]

    found = model.gradients(
        at.prefix, [at.token], sites=[site], objective=loss, values={site: vector[None]}
    )
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):
        way = torch.randn(len(vector), generator=rng)
        way = way / way.norm() * 1e-2
        ends = [
            float(loss(row[None], None))
            for row in patched_logits(model, at, [(layer, vector + s * way) for s in (1, -1)])
        ]
        assert float(found.grads[site][0] @ way) == pytest.approx(
            (ends[0] - ends[1]) / 2, abs=2e-4, rel=2e-2
        )
    plain = model.gradients(at.prefix, [at.token], sites=[site], objective=loss)
    assert not torch.allclose(plain.grads[site], found.grads[site])
    with pytest.raises(SiteError, match="not among the sites"):
        model.gradients(
            at.prefix, [at.token], sites=[], objective=loss, values={site: vector[None]}
        )
    with pytest.raises(SiteError, match="has shape"):
        model.gradients(at.prefix, [at.token], sites=[site], objective=loss, values={site: vector})


def test_learned_directions_carry_the_pointer_and_shuffled_ones_do_not():
    model, truth, ready, _ = bindings.ready("positional_sharp")
    rows = {
        (r["basis"], r["rank"]): r["agreement"]["mean"]
        for r in subspaces(model, ready, truth.pointer_layer, n_sets=3, ranks=(1,))["rows"]
    }
    # short of the means of groups, which carry all of it: a gradient has to find them
    assert rows["das", 7] > 0.5 and rows["means", 7] > 0.9
    assert rows["das", 7] > max(rows["das shuffled", 7], rows["random", 7]) + 0.3


def test_a_learned_basis_is_orthonormal():
    from circuits.binding_subspace import FIRST_TRAIN, _lessons

    model, truth, ready, _ = bindings.ready("positional_sharp")
    lessons = _lessons(model, ready, truth.pointer_layer, FIRST_TRAIN, 0)
    basis = learned_basis(model, lessons, truth.pointer_layer, 3, steps=3)
    assert torch.allclose(basis @ basis.T, torch.eye(3), atol=1e-5)


def test_what_is_learned_depends_on_its_own_seed_alone():
    """Not on the global generator, which whoever ran before has moved."""
    from circuits.binding_subspace import FIRST_TRAIN, _lessons

    model, truth, ready, _ = bindings.ready("positional_sharp")
    lessons = _lessons(model, ready, truth.pointer_layer, FIRST_TRAIN, 0)
    found = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found.append(learned_basis(model, lessons, truth.pointer_layer, 3, steps=3))
    assert torch.equal(*found)
