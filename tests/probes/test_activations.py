"""Activations of windows against whole forwards; the model with shuffled weights."""

import pytest
import torch
from families import tiny
from texts import space_tokenizer

import interp
from interp.errors import ModelError, UnknownNameError
from interp.sites import Site
from probes.activations import shuffled_weights, site_activations
from probes.beginnings import beginning

WINDOWS = [(5, 9, 3, 7, 8, 2), (4, 4), (11, 12, 13, 14)]


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return interp.load(tiny("llama"), tokenizer=space_tokenizer(), check=False)


@pytest.mark.parametrize("skip", [0, 2, 3])
def test_rows_are_those_of_whole_forwards_of_each_window(model, skip):
    sites = [Site("resid_post", 0), Site("resid_pre", 1)]
    found = site_activations(model, WINDOWS, sites, skip_first=skip)
    rows = []
    for window in WINDOWS:
        with torch.no_grad():
            out = model.hf(torch.tensor([window]), output_hidden_states=True)
        rows.append(out.hidden_states[1][0, skip:])
    assert torch.allclose(found[sites[0]], torch.cat(rows), atol=1e-4)
    assert torch.equal(found[sites[0]], found[sites[1]])


def test_windows_that_are_read_over_give_no_row(model):
    found = site_activations(model, [(4, 4)], [Site("resid_post", 0)], skip_first=2)
    assert found[Site("resid_post", 0)].shape == (0, model.spec.d_model)


def test_a_token_that_begins_is_the_tokenizers_choice(model):
    plain = model.tokenizer
    assert beginning(plain, "auto") is None and beginning(plain, "never") is None
    with pytest.raises(ModelError, match="no token that begins"):
        beginning(plain, "always")
    with pytest.raises(UnknownNameError, match="way to begin"):
        beginning(plain, "sometimes")


def test_shuffled_weights_keep_sizes_and_the_model_itself(model):
    before = {k: v.clone() for k, v in model.hf.state_dict().items()}
    other = shuffled_weights(model, seed=0)
    again = shuffled_weights(model, seed=0)
    for name, weight in model.hf.state_dict().items():
        assert torch.equal(weight, before[name])
        mixed = other.hf.state_dict()[name]
        assert torch.equal(mixed.flatten().sort().values, weight.flatten().sort().values)
        inside = "layers" in name and weight.ndim > 1
        assert torch.equal(mixed, weight) is not inside, name
        assert torch.equal(mixed, again.hf.state_dict()[name])
    assert "shuffled" in other.source.name and other.source.weight_hash is None
