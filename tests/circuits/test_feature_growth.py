"""Features that fire, by checkpoint: counts beside dense encoding, equal L0, readings, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import tiny

import interp
from circuits import growth_run
from circuits.growth_counts import alive_features, matched_alive, readings
from circuits.growth_result import GrowthResult
from circuits.growth_run import feature_growth
from interp.errors import MnemoscopeError, ModelError
from interp.sites import Site
from interp.trace import SiteRead
from probes.features import Dictionary
from probes.planted_weights import BOS, UNKNOWN, word_tokenizer

WORDS = ["the", "of", "red", "fox", "ran", "home", ",", "."]
RNG = np.random.default_rng(2)
TEXTS = [" ".join(RNG.choice(WORDS, size=n)) for n in (80, 70, 75, 90, 60, 65)]
SMALL = {
    "layers": (1,), "tokens": 150, "train_tokens": 180, "d_dict": 48, "k": 4, "steps": 12,
    "batch": 64, "length": 30, "skip_first": 2, "bos": "never",
}  # fmt: skip


@pytest.fixture(scope="module")
def models():
    tokenizer = word_tokenizer([UNKNOWN, BOS, *WORDS])
    return {f"step-{n}": interp.load(tiny("llama", seed=n), tokenizer=tokenizer) for n in (1, 2)}


@pytest.fixture(scope="module")
def result(models):
    return feature_growth(models, TEXTS, **SMALL)


def random_dictionary(seed=0, *, kind="jumprelu", d=32, n=40, **fields):
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    weights = {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()}
    if kind == "jumprelu":
        fields["threshold"] = torch.rand(n, generator=g) * 8 + 1
    return Dictionary("random", kind, **weights, **fields)


def rows_of(model, layer):
    """Positions that are counted, of every second text, read one window at a time."""
    tokens = [model.tokenizer(t, add_special_tokens=False)["input_ids"] for t in TEXTS[::2]]
    site, out = Site("resid_post", layer), []
    for text in tokens:
        for start in range(0, len(text), 30):
            window = text[start : start + 30]
            read = SiteRead((site,), (tuple(range(len(window))),))
            out.append(model.extend(None, [window], read=[read]).sites[site][2:])
    return torch.cat(out)[:150]


@pytest.mark.parametrize("l0", [2.0, 9.5])
def test_equal_l0_is_reached_by_one_factor_on_all_thresholds(l0):
    dictionary, x = random_dictionary(), torch.randn(100, 32, generator=torch.manual_seed(0))
    found = matched_alive(dictionary, x, l0)
    scaled = replace(dictionary, threshold=dictionary.threshold * found.factor * (1 - 1e-5))
    dense = scaled.encode(x) > 0
    assert found.l0 == l0 == dense.sum().item() / 100
    assert found.alive == dense.any(0).sum().item()


def test_equal_l0_without_thresholds_and_where_it_is_given(monkeypatch):
    x = torch.randn(50, 32, generator=torch.manual_seed(1))
    plain = random_dictionary(kind="relu")
    border = plain.encode(x).flatten().sort(descending=True).values[149]
    found = matched_alive(plain, x, 3.0)
    assert found.factor == pytest.approx(border.item())
    monkeypatch.setattr("circuits.growth_counts.ROWS", 7)
    assert matched_alive(plain, x, 3.0) == found
    top = random_dictionary(kind="topk", k=3)
    assert matched_alive(top, x, 20.0).l0 == 3.0 and matched_alive(top, x, 20.0).factor == 1.0
    assert matched_alive(plain, x, 1e6).l0 < 40  # no threshold is low enough


def test_alive_features_are_those_of_a_dense_encoding():
    dictionary, x = random_dictionary(), torch.randn(60, 32, generator=torch.manual_seed(2))
    dense = dictionary.encode(x)
    error = (dictionary.decode(dense) - x).square().sum() / (x - x.mean(0)).square().sum()
    found = alive_features(dictionary, x)
    assert found["alive"] == (dense > 0).any(0).sum().item()
    assert found["l0"] == pytest.approx((dense > 0).sum().item() / 60)
    assert found["fvu"] == pytest.approx(error.item(), rel=1e-4)


def test_one_dictionary_counts_the_same_positions_of_every_model(models):
    given = random_dictionary(5, site=Site("resid_post", 1))
    told = feature_growth(models, TEXTS, shared=[given], separate=None, **SMALL).rows
    for name, model in models.items():
        dense = given.encode(rows_of(model, 1)) > 0
        row = told[(told["model"] == name) & (told["dictionary"] == "shared")].iloc[0]
        assert row["alive"] == dense.any(0).sum().item()
        assert row["l0"] == pytest.approx(dense.float().sum(1).mean().item(), abs=0.02)
        assert row["positions"] == len(dense) == 150


def test_rows_in_the_order_of_training_with_the_control_last(result):
    rows = result.rows
    assert rows["model"].tolist() == [
        *["step-1"] * 2, *["step-2"] * 2, *["step-2 (weights shuffled)"] * 2
    ]  # fmt: skip
    assert rows["control"].tolist() == [False] * 4 + [True] * 2
    assert (rows["dictionary"] == ["shared", "own"] * 3).all()
    assert (rows["alive"] <= 48).all() and (rows["l0_matched"] <= rows["l0_asked"] + 0.01).all()


def test_the_shared_dictionary_is_the_last_models_own_and_needs_no_matching(result):
    last = result.rows[result.rows["model"] == "step-2"]
    assert last["alive"].nunique() == 1 and last["l0"].nunique() == 1
    assert (last["alive_matched"] == last["alive"]).all()
    assert last["l0_matched"].to_numpy() == pytest.approx(last["l0"].to_numpy())


def test_readings_follow_their_rules():
    base = {
        "model": "a", "layer": 1, "dictionary": "own", "control": False, "alive_share": 0.5,
        "fvu": 0.2, "l0": 10.0, "l0_asked": 10.0, "alive_matched": 100,
    }  # fmt: skip
    control = {**base, "model": "b", "control": True, "alive_matched": 79}
    assert readings([base, control])[0] == "none of the rules applies"
    for change, words in (
        ({"alive_share": 0.95}, "caps"), ({"fvu": 0.5}, "FVU is 0.50"),
        ({"l0": 12.6}, r"+26%"), ({"l0": 7.4}, "-26%"), ({"alive_matched": 98}, "81% of this"),
    ):  # fmt: skip
        told = readings([{**base, **change}, control])[0]
        assert words in told and told.count(";") == 0


def test_a_run_goes_on_and_comes_back_from_disk(models, tmp_path, monkeypatch, result):
    calls = []
    whole = growth_run.matched_alive

    def counted(*args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(growth_run, "matched_alive", counted)
    with pytest.raises(KeyboardInterrupt):
        feature_growth(models, TEXTS, parts=tmp_path / "parts", **SMALL)
    again = feature_growth(models, TEXTS, parts=tmp_path / "parts", **SMALL)
    assert len(calls) == 7  # the last model and its control were kept
    assert again.rows.drop(columns="reading").equals(result.rows.drop(columns="reading"))
    back = GrowthResult.load(again.save(tmp_path / "run"))
    assert back.rows.equals(again.rows) and back.models == again.models
    assert back.dictionaries["L1"].digest == again.dictionaries["L1"].digest
    assert back.figure("growth").data and back._repr_html_().startswith("<table")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 10**6}, "positions to count"),
        ({"layers": (9,)}, "no layer 9"),
        ({"control": "none at all"}, "unknown control"),
        ({"tokens": 0}, "tokens must be"),
        ({"shared": [random_dictionary(), random_dictionary()]}, "2 dictionaries for 1 layers"),
        ({"shared": [random_dictionary(d=16)]}, "width"),
    ],
)
def test_refusals(models, options, words):
    with pytest.raises(MnemoscopeError, match=words):
        feature_growth(models, TEXTS, **{**SMALL, **options})


def test_two_tokenizers_are_refused(models):
    other = word_tokenizer([UNKNOWN, BOS, *WORDS[::-1]])
    first = interp.load(tiny("llama", seed=1), tokenizer=other)
    with pytest.raises(ModelError, match="another tokenizer"):
        feature_growth({"a": first, "b": models["step-2"]}, TEXTS, **SMALL)
