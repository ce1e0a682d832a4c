"""Steering on a model whose answer a planted direction decides."""

import numpy as np
import pytest
import torch
from families import tiny
from texts import space_tokenizer

import interp
from circuits.steering import (
    ELSEWHERE,
    KTH,
    RANDOM,
    TOP,
    TRAIT,
    SteerSettings,
    _bisect,
    check_steering,
    steer,
)
from interp.errors import PromptError
from interp.sites import Site
from probes.features import Dictionary

PROMPTS = tuple(f"the {a} of {b}" for a, b in [("bana", "belo"), ("dana", "delo"), ("fana", "felo"),
                                               ("gana", "gelo"), ("kana", "kelo")])  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return interp.load(tiny("llama"), tokenizer=space_tokenizer(), check=False)


@pytest.fixture(scope="module")
def planted(model):
    """A dictionary at the last layer with one feature that says "bomi", active after "luse"."""
    last, d = model.spec.n_layers - 1, model.spec.d_model
    goal = model.tokenizer(" bomi", add_special_tokens=False).input_ids[0]
    loud = model.hf.get_output_embeddings().weight[goal].detach().float()
    rows = torch.randn(12, d, generator=torch.Generator().manual_seed(1)) * 0.01
    rows[5] = loud / loud.norm()
    trait = model.tokenizer("the luse", add_special_tokens=False).input_ids
    with torch.no_grad():
        out = model.hf(torch.tensor([trait]), output_hidden_states=True).hidden_states
    encoder = torch.zeros(12, d)
    x = _resid(model, trait, last)
    assert len(out)
    # feature 5 fires second after the trait, others weaker
    for i in range(12):
        encoder[i] = x / x.norm() ** 2 * (50.0 if i == 3 else 40.0 if i == 5 else 5.0 / (i + 1))
    return Dictionary(
        "planted", "topk", encoder.T.contiguous(), torch.zeros(12), rows, torch.zeros(d),
        site=Site("resid_post", last), k=8,
    )  # fmt: skip


def _resid(model, tokens, layer):
    seen = []
    hook = model.hf.model.layers[layer].register_forward_hook(
        lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model.hf(torch.tensor([tokens]))
    hook.remove()
    return seen[0][0, -1].float()


@pytest.fixture(scope="module")
def found(model, planted):
    settings = SteerSettings(
        "the luse", PROMPTS, "bomi", alphas=(0.0001, 1.0), ks=(1, 2, 4), max_new_tokens=1, draws=3,
        style="plain",
    )  # fmt: skip
    return steer(model, planted, settings, firing=np.arange(12))


def test_the_bisection_ends_at_the_planted_feature(found):
    weak, strong = found.bisection
    assert weak["k"] is None and weak["feature"] is None
    assert strong["feature"] == 5 and strong["k"] == 2 and strong["monotone"]


def test_rates_tell_the_feature_from_its_controls(found):
    rates = {(r["arm"], r["alpha"], r["k"]): r for r in found.rows}
    assert found.baseline["rate"] == 0
    assert rates[TOP, 1.0, 1]["rate"] == 0 and rates[TOP, 1.0, 2]["rate"] == 1
    assert rates[KTH, 1.0, 2]["rate"] == 1 and rates[KTH, 1.0, 2]["n"] == len(PROMPTS)
    assert rates[RANDOM, 1.0, 2]["rate"] < 0.5 and rates[RANDOM, 1.0, 2]["n"] == 15
    # at the last layer nothing that is added earlier reaches the last token
    assert rates[ELSEWHERE, 1.0, 2]["rate"] == 0
    assert (TRAIT, 1.0, 0) in rates
    assert all(r["low"] <= r["rate"] <= r["high"] for r in found.rows)


def test_bisection_finds_the_smallest_where_success_grows():
    assert [_bisect(lambda k, n=n: k >= n, 20) for n in (1, 7, 20, 21)] == [1, 7, 20, None]


def test_what_cannot_be_steered_is_refused(model, planted):
    good = SteerSettings("the luse", PROMPTS, "bomi", style="plain")
    for change, words in (({"tests": PROMPTS[:2]}, "5 prompts"), ({"trait": " "}, "empty"),
                          ({"success": "("}, "no regular expression")):  # fmt: skip
        with pytest.raises(PromptError, match=words):
            check_steering(SteerSettings(**(vars(good) | change)))
    with pytest.raises(PromptError, match="without any change"):
        steer(model, planted, SteerSettings(**(vars(good) | {"success": ".*"})))
