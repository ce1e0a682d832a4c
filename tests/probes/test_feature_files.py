"""Files of dictionaries: each layout is written here by hand, with its own formula in numpy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from interp.errors import ResultError, SiteError, UnknownNameError
from interp.sites import Site
from interp.spec import ModelSpec
from probes.feature_files import LAYOUTS, check_dictionary, read_dictionary, write_dictionary
from probes.feature_sites import HOOKS, hook_of_site, site_of_hook
from probes.feature_stored import StoredDictionary, dictionary_of
from probes.features import Dictionary

D, W = 6, 15
RESID, MLP = Site("resid_post", 3), (Site("mlp_in", 3), Site("mlp_out", 3))
BLOCK_3 = "blocks.3.hook_resid_post"


def draws(seed=0):
    """Weights with decoder rows of unequal norms, so that a forgotten norm shows."""
    rng = np.random.default_rng(seed)
    shapes = dict(We=(D, W), be=W, Wd=(W, D), bd=D, skip=(D, D))
    w = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    w["t"] = rng.uniform(0, 1, W).astype(np.float32)
    return w


def rows(n=9):
    return np.random.default_rng(9).normal(size=(n, D)).astype(np.float32)


def relu(a):
    return np.maximum(a, 0)


def top(pre, k):
    """The k largest of each row, where positive."""
    least = np.sort(pre, axis=1)[:, -k][:, None]
    return relu(np.where(pre >= least, pre, 0))


def contiguous(tensors):
    return {n: np.ascontiguousarray(t) for n, t in tensors.items()}


def saelens(folder, config, more=None, **swap):
    w = draws()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": w["We"], "b_enc": w["be"], "W_dec": w["Wd"], "b_dec": w["bd"]}
    save_file(contiguous({**tensors, **(more or {})}), folder / "sae_weights.safetensors")
    base = {"d_in": D, "d_sae": W, "dtype": "float32", "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps({**base, **config}))
    return w


def with_hooks(hook=BLOCK_3, out=None, **more):
    meta = {"sae_lens_version": "6.54.12", "hook_name": hook, "model_name": "m"}
    return {**more, "metadata": meta if out is None else {**meta, "hook_name_out": out}}


# Each case writes a folder and gives the features and the reconstruction of `x`, and the sites.


def saelens_standard(root):
    w = saelens(root, with_hooks(architecture="standard", apply_b_dec_to_input=True))
    z = lambda x: relu((x - w["bd"]) @ w["We"] + w["be"])  # noqa: E731
    return root, z, lambda x, z: z @ w["Wd"] + w["bd"], (RESID, None)


def saelens_before_6(root):
    config = {"hook_point": BLOCK_3, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
    w = saelens(
        root,
        {**config, "finetuning_scaling_factor": False, "normalize_activations": False},
        {"scaling_factor": np.ones(W, np.float32)},
    )
    z = lambda x: top((x - w["bd"]) @ w["We"] + w["be"], 4)  # noqa: E731
    return root, z, lambda x, z: z @ w["Wd"] + w["bd"], (RESID, None)


def saelens_topk_rescaled(root):
    config = with_hooks(
        architecture="topk", k=3, apply_b_dec_to_input=False, rescale_acts_by_decoder_norm=True
    )
    w = saelens(root, config)
    norms = np.linalg.norm(w["Wd"], axis=1)
    z = lambda x: top((x @ w["We"] + w["be"]) * norms, 3)  # noqa: E731
    return root, z, lambda x, z: (z / norms) @ w["Wd"] + w["bd"], (RESID, None)


def saelens_batchtopk(root):
    config = with_hooks(
        architecture="batchtopk", k=3, apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=True
    )
    w = saelens(root, config, {"topk_threshold": np.array(0.8)})
    norms = np.linalg.norm(w["Wd"], axis=1)

    def z(x):
        pre = ((x - w["bd"]) @ w["We"] + w["be"]) * norms
        return relu(pre) * (pre > 0.8)

    return root, z, lambda x, z: (z / norms) @ w["Wd"] + w["bd"], (RESID, None)


def saelens_scaled(root):
    config = with_hooks(
        "blocks.3.hook_resid_mid", architecture="jumprelu", apply_b_dec_to_input=True,
        normalize_activations="expected_average_only_in",
    )  # fmt: skip
    w = saelens(root, config, {"threshold": draws()["t"]})
    (root / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')

    def z(x):
        pre = (x * 0.25 - w["bd"]) @ w["We"] + w["be"]
        return relu(pre) * (pre > w["t"])

    return root, z, lambda x, z: (z @ w["Wd"] + w["bd"]) / 0.25, (Site("resid_mid", 3), None)


def saelens_skip_transcoder(root):
    config = with_hooks(
        "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out",
        architecture="jumprelu_skip_transcoder", apply_b_dec_to_input=False, d_out=D,
    )  # fmt: skip
    w = saelens(root, config, {"threshold": draws()["t"], "W_skip": draws()["skip"].T})
    z = lambda x: relu(p := x @ w["We"] + w["be"]) * (p > w["t"])  # noqa: E731
    return root, z, lambda x, z: z @ w["Wd"] + w["bd"] + x @ w["skip"], MLP


def gemma_scope(root):
    folder = root / "layer_3/width_16k/average_l0_82"
    folder.mkdir(parents=True)
    w = draws()
    named = {"W_enc": w["We"], "b_enc": w["be"], "W_dec": w["Wd"], "b_dec": w["bd"]}
    np.savez(folder / "params.npz", threshold=w["t"], **named)
    z = lambda x: relu(p := x @ w["We"] + w["be"]) * (p > w["t"])  # noqa: E731
    return folder, z, lambda x, z: z @ w["Wd"] + w["bd"], (RESID, None)


def gemma_scope_transcoder(root):
    folder, z, y, _ = gemma_scope(
        root / "models--google--gemma-scope-2b-pt-transcoders/snapshots/a"
    )
    return folder, z, y, MLP


def gemma_scope_2(root, place="transcoder_all", config=None):
    folder = root / place / "layer_3_width_16k_l0_small_affine"
    folder.mkdir(parents=True)
    w = draws()
    tensors = {"w_enc": w["We"], "b_enc": w["be"], "w_dec": w["Wd"], "b_dec": w["bd"]}
    skip = {"affine_skip_connection": w["skip"]} if "transcoder" in place else {}
    save_file({**tensors, "threshold": w["t"], **skip}, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", **config}))
    z = lambda x: relu(p := x @ w["We"] + w["be"]) * (p > w["t"])  # noqa: E731
    if skip:
        return folder, z, lambda x, z: z @ w["Wd"] + w["bd"] + x @ w["skip"], MLP
    return folder, z, lambda x, z: z @ w["Wd"] + w["bd"], (RESID, None)


def gemma_scope_2_residual(root):
    hook = "model.language_model.layers.3.output"
    return gemma_scope_2(root, "resid_post", {"hf_hook_point_in": hook, "model_name": "g"})


def sparsify(root, name="layers.3", *, transcode=False):
    folder = root / name
    folder.mkdir(parents=True)
    w = draws()
    tensors = {"encoder.weight": w["We"].T, "encoder.bias": w["be"], "W_dec": w["Wd"]}
    skip = {"W_skip": w["skip"].T} if transcode else {}
    save_file(contiguous({**tensors, "b_dec": w["bd"], **skip}), folder / "sae.safetensors")
    config = {"k": 4, "d_in": D, "num_latents": W, "transcode": transcode, "signed": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    if transcode:
        z = lambda x: top(x @ w["We"] + w["be"], 4)  # noqa: E731
        return folder, z, lambda x, z: z @ w["Wd"] + w["bd"] + x @ w["skip"], MLP
    z = lambda x: top((x - w["bd"]) @ w["We"] + w["be"], 4)  # noqa: E731
    return folder, z, lambda x, z: z @ w["Wd"] + w["bd"], (RESID, None)


def sparsify_transcoder(root):
    return sparsify(root, "layers.3.mlp", transcode=True)


def sparsify_mlp(root):
    return (*sparsify(root, "layers.3.mlp")[:3], (Site("mlp_out", 3), None))


def learned(root, name, tensors, **trainer):
    root.mkdir(parents=True, exist_ok=True)
    config = {"dict_class": name, "layer": 3, "submodule_name": "resid_post_layer_3", **trainer}
    (root / "config.json").write_text(json.dumps({"trainer": config, "buffer": {}}))
    torch.save({n: torch.as_tensor(np.array(t)) for n, t in tensors.items()}, root / "ae.pt")


def modules(w, bias="b_dec"):
    return {
        "encoder.weight": w["We"].T, "encoder.bias": w["be"], "decoder.weight": w["Wd"].T,
        bias: w["bd"],
    }  # fmt: skip


def learned_standard(root):
    w = draws()
    learned(root, "AutoEncoder", modules(w, "bias"))
    z = lambda x: relu((x - w["bd"]) @ w["We"] + w["be"])  # noqa: E731
    return root, z, lambda x, z: z @ w["Wd"] + w["bd"], (RESID, None)


def learned_new(root):
    w = draws()
    learned(root, "AutoEncoderNew", modules(w, "decoder.bias"), submodule_name="mlp_out_layer_3")
    z = lambda x: relu(x @ w["We"] + w["be"])  # noqa: E731
    return root, z, lambda x, z: z @ w["Wd"] + w["bd"], (Site("mlp_out", 3), None)


def learned_topk(root):
    w = draws()
    learned(root, "AutoEncoderTopK", {**modules(w), "k": 5, "threshold": 0.3}, k=5)
    z = lambda x: top((x - w["bd"]) @ w["We"] + w["be"], 5)  # noqa: E731
    return root, z, lambda x, z: z @ w["Wd"] + w["bd"], (RESID, None)


def learned_batchtopk(root):
    w = draws()
    learned(root, "BatchTopKSAE", {**modules(w), "k": 5, "threshold": np.float32(0.7)}, k=5)
    z = lambda x: relu(p := (x - w["bd"]) @ w["We"] + w["be"]) * (p > 0.7)  # noqa: E731
    return root, z, lambda x, z: z @ w["Wd"] + w["bd"], (RESID, None)


def learned_jumprelu(root):
    w = draws()
    tensors = {"W_enc": w["We"], "b_enc": w["be"], "W_dec": w["Wd"], "b_dec": w["bd"]}
    learned(root, "JumpReluAutoEncoder", {**tensors, "threshold": w["t"]})
    norms = np.linalg.norm(w["Wd"], axis=1)
    z = lambda x: relu(p := x @ w["We"] + w["be"]) * (p > w["t"]) * norms  # noqa: E731
    return root, z, lambda x, z: (z / norms) @ w["Wd"] + w["bd"], (RESID, None)


CASES = [
    saelens_standard, saelens_before_6, saelens_topk_rescaled, saelens_batchtopk, saelens_scaled,
    saelens_skip_transcoder, gemma_scope, gemma_scope_transcoder, gemma_scope_2,
    gemma_scope_2_residual, sparsify, sparsify_transcoder, sparsify_mlp, learned_standard,
    learned_new, learned_topk, learned_batchtopk, learned_jumprelu,
]  # fmt: skip


def agrees(dictionary, encode, decode):
    x = rows()
    z = encode(x)
    got = dictionary.encode(torch.from_numpy(x))
    assert (z > 0).any() and (z == 0).any()
    np.testing.assert_allclose(got.numpy(), z, atol=1e-4)
    made = dictionary.decode(got, torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(made, decode(x, z), atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_each_layout_is_read_as_its_formula_says(case, tmp_path):
    folder, encode, decode, sites = case(tmp_path / "dictionary")
    dictionary = read_dictionary(folder)
    agrees(dictionary, encode, decode)
    assert (dictionary.site, dictionary.out_site) == sites
    assert dictionary.is_transcoder == (sites[1] is not None)
    known = {"gemma_scope_2": "gemma_scope_2", "learned": "dictionary_learning"}
    layouts = {**known, **{name: name for name in LAYOUTS}}
    layout = next(name for word, name in layouts.items() if case.__name__.startswith(word))
    assert dictionary.about["layout"] == layout


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_what_was_read_is_written_and_read_again(case, tmp_path):
    folder, encode, decode, sites = case(tmp_path / "dictionary")
    first = read_dictionary(folder)
    where = write_dictionary(first, tmp_path / "written")
    again = read_dictionary(where)
    agrees(again, encode, decode)
    assert (again.site, again.out_site, again.name) == (*sites, first.name)
    kept = ("hook_name", "hook_name_out", "model_name", "width", "dict_class", "trained_as")
    assert [again.about.get(k) for k in kept] == [first.about.get(k) for k in kept]
    if first.scale == 1:
        assert again.digest == first.digest
    assert write_dictionary(again, where) == where  # over itself


def test_the_name_and_the_training_record_survive(tmp_path):
    folder = sparsify(tmp_path / "d")[0]
    made = replace(read_dictionary(folder), name="mine", about={"training": {"steps": 3}})
    again = read_dictionary(write_dictionary(made, tmp_path / "mine"))
    assert again.name == "mine" and again.about["training"] == {"steps": 3}


def test_batchtopk_is_named_and_kept_as_jumprelu(tmp_path):
    dictionary = read_dictionary(learned_batchtopk(tmp_path)[0])
    assert dictionary.activation == "jumprelu" and dictionary.about["trained_as"] == "batchtopk"
    assert dictionary.k is None and dictionary.threshold.tolist() == [pytest.approx(0.7)] * W


def test_names_of_places_go_both_ways():
    names = {
        "blocks.15.hook_resid_post": Site("resid_post", 15),
        "blocks.3.hook_mlp_out": Site("mlp_out", 3),
        "blocks.3.hook_attn_out": Site("attn_out", 3),
        "blocks.0.hook_resid_pre": Site("resid_pre", 0),
        "blocks.0.hook_resid_mid": Site("resid_mid", 0),
        "blocks.3.ln2.hook_normalized": Site("mlp_in", 3),
        "model.layers.3.pre_feedforward_layernorm.output": Site("mlp_in", 3),
        "hook_embed": None,
        "blocks.3.hook_mlp_in": None,  # before the norm or behind it, depending on who wrote it
    }
    assert {n: site_of_hook(n) for n in names} == names
    kinds = {h.kind for h in HOOKS.values() if h.kind is not None}
    for kind in kinds:
        assert site_of_hook(hook_of_site(Site(kind, 7))) == Site(kind, 7)
    with pytest.raises(ResultError, match="head outputs"):
        site_of_hook("blocks.3.attn.hook_z")
    with pytest.raises(ResultError, match="no name in a file"):
        hook_of_site(Site("z", 3, 1))


def test_the_site_that_is_named_goes_before_the_files(tmp_path):
    folder = saelens_standard(tmp_path / "a")[0]
    other = Site("mlp_out", 5)
    assert read_dictionary(folder, site=other).site == other
    unnamed = sparsify(tmp_path / "b", "model")[0]
    assert read_dictionary(unnamed).site is None
    assert read_dictionary(unnamed, site=RESID).site == RESID
    transcoder = sparsify(tmp_path / "c", "model", transcode=True)[0]
    with pytest.raises(ResultError, match="does not say of what; name its site"):
        read_dictionary(transcoder)
    assert read_dictionary(transcoder, site=MLP[0]).out_site == MLP[1]


SPEC = ModelSpec(
    "LlamaForCausalLM", n_layers=4, n_heads=2, n_kv_heads=2, d_head=3, d_model=D, d_vocab=9,
    attention_layers=(0, 1, 2, 3), windows=(None,) * 4, softcap=None, has_sinks=False,
    context_length=None,
)  # fmt: skip


def test_dictionaries_that_fit_a_model_pass(tmp_path):
    for case in (saelens_standard, saelens_skip_transcoder, gemma_scope_2_residual, sparsify_mlp):
        check_dictionary(read_dictionary(case(tmp_path / case.__name__)[0]), SPEC)


@pytest.mark.parametrize(
    ("case", "spec", "told"),
    [
        (saelens_standard, {"d_model": 8}, "width 6 at L3.resid_post, this model 8"),
        (saelens_standard, {"n_layers": 3}, "layer 3, this model has layers 0-2"),
        (gemma_scope_transcoder, {}, "before the gain of the norm"),
        (saelens_skip_transcoder, {"architecture": "Gemma2ForCausalLM"}, "behind the norm"),
    ],
)
def test_dictionaries_of_another_model_or_place_are_refused(case, spec, told, tmp_path):
    dictionary = read_dictionary(case(tmp_path / "d")[0])
    with pytest.raises(SiteError) as error:
        check_dictionary(dictionary, replace(SPEC, **spec))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_place_that_differs_can_be_named(tmp_path):
    folder = gemma_scope_transcoder(tmp_path)[0]
    check_dictionary(read_dictionary(folder, site=MLP[0]), SPEC)
    with pytest.raises(SiteError, match="does not say where"):
        check_dictionary(replace(read_dictionary(folder), site=None), SPEC)


def refused(folder, told, **more):
    with pytest.raises((ResultError, UnknownNameError)) as error:
        read_dictionary(folder, **more)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"architecture": "gated"}, "architecture gated is not supported"),
        ({"architecture": "jumprelu"}, "lacks threshold"),
        ({"architecture": "topk"}, "topk needs k"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations = layer_norm"),
        ({"normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale is not"),
        ({"normalize_activations": "expected_average_only_in"}, "the factor is not in its files"),
        ({"reshape_activations": "hook_z"}, "reshape_activations = hook_z"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor = True"),
        ({"activation_fn": "tanh-relu"}, "activation_fn = tanh-relu"),
        ({"hook_head_index": 2}, "hook_head_index = 2"),
        ({"hook_name": "blocks.3.attn.hook_z"}, "head outputs of a layer are not supported"),
    ],
)
def test_settings_that_are_not_understood_are_refused(setting, told, tmp_path):
    saelens(tmp_path, {"hook_name": BLOCK_3, **setting})
    refused(tmp_path, told)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"r_mag": np.zeros(W, np.float32)}, "also holds r_mag"),
        ({"scaling_factor": np.full(W, 2, np.float32)}, "rescaled by scaling_factor"),
        ({"b_enc": np.full(W, np.nan, np.float32)}, "b_enc holds NaN"),
        ({"b_enc": np.zeros(W + 1, np.float32)}, "b_enc has shape (16,), expected (15,)"),
    ],
)
def test_tensors_that_do_not_belong_are_refused(more, told, tmp_path):
    saelens(tmp_path, {"hook_name": BLOCK_3}, more)
    refused(tmp_path, told)


def test_other_layouts_refuse_what_they_cannot_do(tmp_path):
    folder = sparsify(tmp_path / "s")[0]
    (folder / "cfg.json").write_text('{"k": 4, "activation": "groupmax"}')
    refused(folder, "activation = groupmax is not supported; known: topk")
    learned(tmp_path / "l", "GatedAutoEncoder", modules(draws()))
    refused(tmp_path / "l", "dict_class = GatedAutoEncoder")
    learned(tmp_path / "m", "BatchTopKSAE", modules(draws()))
    refused(tmp_path / "m", "lacks threshold")
    learned(tmp_path / "n", "BatchTopKSAE", {**modules(draws()), "threshold": -1.0})
    refused(tmp_path / "n", "the threshold was never set")
    refused(gemma_scope(tmp_path / "gemma-scope-2b-pt-att/x")[0], "head outputs")
    refused(gemma_scope(tmp_path / "embedding")[0], "reads the unscaled embedding")
    refused(gemma_scope_2(tmp_path, "attn_out")[0], "head outputs")
    assert read_dictionary(gemma_scope(tmp_path / "gemma-scope-2b-pt-mlp/x")[0]).site == MLP[1]
    assert read_dictionary(gemma_scope_2(tmp_path / "g", "mlp_out")[0]).site == MLP[1]


def test_a_cross_layer_transcoder_is_refused(tmp_path):
    folder = gemma_scope_2(tmp_path)[0]
    w = draws()
    tensors = {"w_enc": w["We"], "b_enc": w["be"], "w_dec": np.stack([w["Wd"]] * 2, 1)}
    save_file({**tensors, "b_dec": w["bd"], "threshold": w["t"]}, folder / "params.safetensors")
    refused(folder, "cross-layer transcoder")


@pytest.mark.parametrize("case", [saelens_standard, gemma_scope, gemma_scope_2, learned_topk])
def test_damaged_files_give_one_line(case, tmp_path):
    folder = case(tmp_path / "d")[0]
    names = ("sae_weights.safetensors", "params.npz", "params.safetensors", "ae.pt")
    path = next(folder / n for n in names if (folder / n).exists())
    path.write_bytes(path.read_bytes()[:40])
    refused(folder, f"{path} cannot be read")


def test_folders_without_a_dictionary_are_refused(tmp_path):
    refused(tmp_path / "nowhere", "is not here; name a folder")
    refused(tmp_path, "gemma_scope_2: params.safetensors")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file; name its folder")
    refused(saelens_standard(tmp_path / "d")[0], "did you mean saelens", layout="saelen")
    (tmp_path / "d/cfg.json").write_text("[]")
    refused(tmp_path / "d", "holds no settings")
    (tmp_path / "d/cfg.json").write_text("{")
    refused(tmp_path / "d", "cfg.json cannot be read")


def test_a_pickle_that_runs_code_is_not_loaded(tmp_path):
    learned(tmp_path, "AutoEncoder", modules(draws(), "bias"))
    torch.save({"encoder.weight": Path("/")}, tmp_path / "ae.pt")
    refused(tmp_path, "ae.pt cannot be read")


def test_the_hub_fetches_only_files_of_a_layout(tmp_path, monkeypatch):
    import huggingface_hub

    folder, encode, decode, sites = gemma_scope(tmp_path / "snapshot")
    seen = {}

    def snapshot_download(name, *, revision, allow_patterns):
        seen.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    inside = "layer_3/width_16k/average_l0_82"
    dictionary = read_dictionary(f"hub:google/some@v1/{inside}")
    agrees(dictionary, encode, decode)
    assert dictionary.site == sites[0]
    assert (seen["name"], seen["revision"]) == ("google/some", "v1")
    assert f"{inside}/params.npz" in seen["patterns"]
    assert all(p.startswith(inside) and "*" not in p for p in seen["patterns"])


def test_an_unreachable_hub_gives_one_line():
    refused("hub:org/name/layer", "hub:org/name/layer cannot be fetched")
    refused("hub:org", "write hub:org/name/folder")


def test_a_stored_dictionary_is_checked_when_named_and_read_when_used(tmp_path):
    made = read_dictionary(saelens_standard(tmp_path / "made")[0])
    assert dictionary_of(made) is made
    folder = write_dictionary(made, tmp_path / "d")
    stored = StoredDictionary(folder)
    assert dictionary_of(stored).digest == made.digest
    weights = folder / "sae_weights.safetensors"
    whole = weights.read_bytes()
    for path, cut in ((weights, whole[:-1]), (weights, b""), (folder / "cfg.json", b"{")):
        kept = path.read_bytes()
        path.write_bytes(cut)
        with pytest.raises(ResultError, match=f"{path} cannot be read"):
            StoredDictionary(folder)
        path.write_bytes(kept)
    weights.unlink()
    for late in (lambda: StoredDictionary(folder), lambda: dictionary_of(stored)):
        with pytest.raises(ResultError) as error:
            late()
        assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_other_files_are_never_written_over(tmp_path):
    dictionary = read_dictionary(saelens_standard(tmp_path / "d")[0])
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("dear")
    with pytest.raises(ResultError, match="holds other files than a dictionary"):
        write_dictionary(dictionary, tmp_path / "home")
    assert (tmp_path / "home/letter").read_text() == "dear"


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
def test_sae_lens_reads_what_is_written(activation, tmp_path):
    library = pytest.importorskip("sae_lens")
    w = {n: torch.from_numpy(a) for n, a in draws().items()}
    dictionary = Dictionary(
        "d", activation, w["We"], w["be"], w["Wd"], w["bd"], site=RESID, centred=True,
        k=4 if activation == "topk" else None, scale=0.5,
        threshold=w["t"] if activation == "jumprelu" else None,
    )  # fmt: skip
    theirs = library.SAE.load_from_disk(write_dictionary(dictionary, tmp_path / "d"))
    x = torch.from_numpy(rows())
    torch.testing.assert_close(theirs.encode(x), dictionary.encode(x))
    torch.testing.assert_close(theirs(x), dictionary.decode(dictionary.encode(x)))
