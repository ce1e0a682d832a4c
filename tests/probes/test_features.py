"""Dictionaries: the sparse path against the dense one, and the dense one against plain formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import ResultError, SiteError
from interp.sites import Site
from probes import features as module
from probes.features import ACTIVATIONS, Dictionary, Sparse

KINDS = ("relu", "jumprelu", "topk")
D_IN, D_DICT, D_OUT = 6, 23, 6


def dictionary(activation="relu", *, whole_numbers=False, seed=0, **changes):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        if whole_numbers:  # products of these are exact, so that equal ones are really equal
            return torch.randint(-2, 3, shape, generator=g).float()
        return torch.randn(*shape, generator=g)

    fields = dict(
        name="small",
        activation=activation,
        W_enc=draw(D_IN, D_DICT),
        b_enc=draw(D_DICT),
        W_dec=draw(D_DICT, D_OUT),
        b_dec=draw(D_OUT),
        site=Site("resid_post", 1),
        threshold=draw(D_DICT) if activation == "jumprelu" else None,
        k=4 if activation == "topk" else None,
    )
    return Dictionary(**{**fields, **changes})


def rows(n=7, *, seed=1, whole_numbers=False):
    g = torch.Generator().manual_seed(seed)
    if whole_numbers:
        return torch.randint(-2, 3, (n, D_IN), generator=g).float()
    return torch.randn(n, D_IN, generator=g)


def dense(z: Sparse):
    out = torch.zeros(z.n_rows, D_DICT)
    out[z.row, z.feature] = z.value.float()
    return out


def by_hand(d, x):
    """One row and one feature at a time, in numpy."""
    array = {n: getattr(d, n).double().numpy() for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
    z = np.zeros((len(x), D_DICT))
    for r, row in enumerate(x.double().numpy()):
        own = row * d.scale - (array["b_dec"] if d.centred else 0)
        pre = [own @ array["W_enc"][:, f] + array["b_enc"][f] for f in range(D_DICT)]
        best = sorted(range(D_DICT), key=lambda f: (-pre[f], f))[: d.k]
        for f in range(D_DICT):
            above = d.threshold is None or pre[f] > d.threshold[f].item()
            if pre[f] > 0 and above and (d.k is None or f in best):
                z[r, f] = pre[f]
    y = (z @ array["W_dec"] + array["b_dec"]) / d.scale
    if d.skip is not None:
        y = y + x.double().numpy() @ d.skip.double().numpy()
    return z, y


@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("changes", [{}, {"centred": True, "scale": 0.3}, {"skip": True}])
def test_encoding_and_decoding_are_the_formula(activation, changes):
    if "skip" in changes:
        changes = {"skip": torch.randn(D_IN, D_OUT, generator=torch.Generator().manual_seed(3))}
    d, x = dictionary(activation, **changes), rows()
    z, y = by_hand(d, x)
    np.testing.assert_allclose(d.encode(x).numpy(), z, atol=1e-5)
    np.testing.assert_allclose(d.decode(d.encode(x), x).numpy(), y, atol=1e-4)
    np.testing.assert_allclose(d.decode_sparse(d.encode_sparse(x), x).numpy(), y, atol=1e-4)


@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("whole_numbers", [True, False])
@given(block=st.integers(1, 30), n=st.integers(0, 9), k=st.integers(1, D_DICT), seed=st.integers(0))
@settings(max_examples=30, deadline=None)
def test_sparse_features_equal_dense_ones(activation, whole_numbers, block, n, k, seed):
    d = dictionary(activation, whole_numbers=whole_numbers, seed=seed % 2**32)
    d = replace(d, k=k) if activation == "topk" else d
    x = rows(n, seed=seed % 2**31, whole_numbers=whole_numbers)
    z, whole = d.encode_sparse(x, block=block), d.encode(x)
    assert torch.equal(dense(z) > 0, whole > 0)
    torch.testing.assert_close(dense(z), whole, atol=0 if whole_numbers else 1e-5, rtol=0)
    key = z.row * D_DICT + z.feature
    assert (key.diff() > 0).all() and (z.value > 0).all() and z.n_rows == n


def test_of_equal_pre_activations_the_lowest_features_are_taken():
    d = dictionary("topk", W_enc=torch.zeros(D_IN, D_DICT), b_enc=torch.ones(D_DICT), k=5)
    for block in (2, 5, 8, 100):
        z = d.encode_sparse(rows(3), block=block)
        assert z.feature.tolist() == [0, 1, 2, 3, 4] * 3
    assert d.encode(rows(3)).nonzero()[:, 1].tolist() == [0, 1, 2, 3, 4] * 3


def test_topk_leaves_out_what_is_not_positive():
    d = dictionary("topk", b_enc=torch.full((D_DICT,), -100.0))
    assert not d.encode(rows()).any() and len(d.encode_sparse(rows()).row) == 0
    torch.testing.assert_close(d.decode_sparse(d.encode_sparse(rows())), d.b_dec.expand(7, -1))


def test_rows_are_encoded_in_pieces_of_bounded_size(monkeypatch):
    d, x = dictionary("topk"), rows(50)
    whole = d.encode_sparse(x)
    monkeypatch.setattr(module, "CELLS", 40)
    largest = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a: largest.append(addmm(*a)) or largest[-1])
    pieces = d.encode_sparse(x, block=8)
    assert max(p.numel() for p in largest) <= 40
    assert torch.equal(pieces.row, whole.row) and torch.equal(pieces.feature, whole.feature)


def test_digest_follows_weights_and_use():
    d = dictionary("topk")
    assert d.digest == dictionary("topk").digest and len(d.digest) == 16
    other = d.W_dec.clone()
    other[0, 0] += 1
    changed = [
        replace(d, W_dec=other), replace(d, k=5), replace(d, centred=True), replace(d, scale=2.0),
        dictionary("relu"), d.to(dtype=torch.bfloat16),
    ]  # fmt: skip
    assert len({d.digest, *(c.digest for c in changed)}) == 7
    assert replace(d, name="another", about={"a": 1}).digest == d.digest


def test_half_precision_keeps_the_features_that_matter():
    d, x = dictionary("topk"), rows(40)
    half = d.to(dtype=torch.bfloat16)
    z = half.encode_sparse(x)
    assert z.value.dtype == torch.bfloat16
    torch.testing.assert_close(dense(z).double(), half.encode(x).double(), atol=0.05, rtol=0.05)
    agree = ((half.encode(x) > 0) == (d.encode(x) > 0)).float().mean()
    assert agree > 0.97


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"activation": "batchtopk", "threshold": torch.ones(D_DICT)}, "jumprelu"),
        ({"activation": "batchtopk"}, "in training only"),
        ({"activation": "gelu"}, "unknown activation 'gelu'"),
        ({"activation": "jumprelu", "threshold": None}, "needs threshold"),
        ({"activation": "topk", "k": None}, "needs k"),
        ({"activation": "topk", "k": D_DICT + 1}, f"expected 1 to {D_DICT}"),
        ({"b_enc": torch.zeros(D_DICT - 1)}, "b_enc has shape (22,), expected (23,)"),
        ({"b_dec": torch.zeros(D_OUT).half()}, "one precision"),
        ({"W_dec": torch.zeros(D_DICT)}, "must be matrices"),
        ({"W_dec": torch.zeros(D_DICT, 9), "b_dec": torch.zeros(9), "centred": True}, "width 9"),
    ],
)
def test_dictionaries_that_cannot_be_are_refused(changes, told):
    with pytest.raises(ResultError) as error:
        dictionary(**{"activation": "relu", **changes})
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_width_names_both():
    with pytest.raises(SiteError, match=r"width 6 at L1.resid_post, got shape \(2, 5\)"):
        dictionary().encode_sparse(torch.zeros(2, 5))
    with pytest.raises(SiteError, match="width 6"):
        dictionary().encode(torch.zeros(6))


def test_a_skip_needs_the_input():
    d = dictionary(skip=torch.eye(D_IN))
    with pytest.raises(SiteError, match="give decode the input"):
        d.decode_sparse(d.encode_sparse(rows()))


def test_every_activation_says_what_it_is():
    assert set(ACTIVATIONS) == {"relu", "jumprelu", "topk", "batchtopk"}
    assert "fixed threshold" in ACTIVATIONS["batchtopk"].says
    assert "6 -> 23 -> 6, at L1.resid_post" in repr(dictionary())
    assert "-> L1.mlp_out" in repr(dictionary(out_site=Site("mlp_out", 1)))
