"""Validation on planted models: verdicts, both directions, splits, resume, files, refusals."""

import json

import numpy as np
import pytest
import worlds

import circuits
from circuits.circuit import find_circuit
from circuits.circuit_result import CircuitResult
from circuits.patch_result import PatchResult
from circuits.patching import patch
from circuits.retrieval import scan
from circuits.validation import validate
from circuits.validation_plan import ValidateSettings, with_preset
from circuits.validation_result import ValidationResult
from interp.errors import PromptError, ResultError, SiteError, UnknownNameError
from interp.sites import Head

SMALL = {
    "n_needles": 10, "length": 101, "depths": (0.2, 0.5, 0.8), "curve": (1,), "n_curve": 5,
    "n_draws": 120, "prompts": tuple(worlds.PROMPTS.items()),
}  # fmt: skip
FAST = SMALL | {"specificity": False, "alone": False, "ablations": ("zero",), "n_draws": 49}


@pytest.fixture(scope="module")
def scanned():
    model, truth = worlds.world("induction_pair")
    return model, truth, scan(model, **(worlds.MATERIALS.scan | truth.options))


@pytest.fixture(scope="module")
def result(scanned):
    model, truth, _ = scanned
    # with a third layer's head there are more than a hundred matched sets of a layer of eight each
    heads = [*truth.heads("copy"), *truth.heads("previous"), Head(2, 0)]
    return validate(model, heads, ValidateSettings(**SMALL, top=3))


def test_the_true_heads_are_necessary_and_sufficient(result):
    verdicts = {(f.effect.ablation, f.effect.direction): f for f in result.findings}
    assert len(verdicts) == 6
    assert {f.verdict for f in verdicts.values()} == {"supported"}
    words = {"ablate": "necessary", "noising": "necessary", "denoising": "sufficient"}
    for (_, direction), finding in verdicts.items():
        assert words[direction] in finding.claim
        others = set(words.values()) - {words[direction]}
        assert not any(w in finding.claim + finding.reason for w in others)
    zero = verdicts["zero", "ablate"].effect
    assert zero.effect < -2 and abs(zero.control - zero.baseline) < 0.3
    back = verdicts["resample", "denoising"].effect
    assert back.effect > 2 and abs(back.treated - zero.baseline) < 0.5


def test_baselines_and_values_are_those_of_the_questions(result):
    assert result.kept.all() and len(result.cases) >= 8
    table = result.sets
    assert (table.groupby("ablation").size() >= 120).all()
    mine = set(result.settings["heads"])
    for row in table[table["role"] == "random"].itertuples():
        drawn = [Head.parse(h) for h in row.heads.split(",")]
        assert not mine & {str(h) for h in drawn}
        if row.k == 3:
            assert sorted(h.layer for h in drawn) == sorted(Head.parse(h).layer for h in mine)
    assert np.allclose(result.start[:, 0], result.cases["logprob"])


def test_a_head_that_only_looks_is_not_supported():
    model, truth = worlds.world("attends_only")
    heads = [*truth.heads("look"), Head(0, 0)]
    r = validate(model, heads, ValidateSettings(**FAST, top=2))
    assert {f.verdict for f in r.findings} == {"unsupported"}


def test_self_repair_and_negative_heads_are_visible():
    model, truth = worlds.world("backup")
    r = validate(model, truth.heads("copy"), ValidateSettings(**FAST, top=1))
    mean = r.direct.groupby("head").mean(numeric_only=True).loc[str(truth.heads("copy")[0])]
    assert mean["direct"] < -1 and abs(mean["total"]) < 0.2
    model, truth = worlds.world("negative")
    r = validate(model, truth.heads("copy"), ValidateSettings(**(FAST | {"alone": True}), top=1))
    frame = r.alone_frame().set_index("name")
    assert frame.loc[str(truth.heads("negative")[0]), "kind"] == "negative"
    assert frame["effect"].idxmin() == str(truth.heads("copy")[0])


def test_selection_and_test_needles_are_disjoint(scanned):
    model, truth, scanned_result = scanned
    r = validate(model, scanned_result, ValidateSettings(**FAST, top=2))
    assert r.settings["heads"][0] == str(truth.heads("copy")[0])
    assert not set(r.cases["needle"]) & set(r.settings["selection_needles"])
    assert any("ranked again" in n for n in r.notes)
    assert r.score_against_effect() is None  # no head was ablated alone


def test_single_sets_that_cannot_reach_p_are_inconclusive_for_that_reason(scanned):
    model, truth, _ = scanned
    r = validate(model, truth.heads("copy"), ValidateSettings(**FAST, top=1))
    assert {f.verdict for f in r.findings} == {"inconclusive"}
    assert all("too few" in f.reason for f in r.findings)
    assert any("only 7 matched sets" in n for n in r.notes)


def test_curve_alone_specificity_and_controls_are_there(result):
    curve = result.curve()
    assert set(curve["role"]) == {"top", "random", "bottom"} and set(curve["k"]) == {1, 3}
    alone = result.alone_frame()
    assert len(alone) == 24 and alone["effect"].idxmin() == 8 * result.heads[0].layer + (
        result.heads[0].head
    )
    assert set(result.specificity["kind"]) >= {"plain text", "short copying"}
    controls = result.controls()
    assert set(controls["role"]) == {"top", "bottom", "sink"}
    assert {"logprob", "logit_diff", "exact"} == set(controls["of"])
    assert "agree" in result.agreement()


def test_answers_lost_and_gained_are_counted(result):
    frame = result.pass_fail().set_index("run")
    for run, row in frame.iterrows():
        m = result.metrics.index("exact")
        top = (result.sets["ablation"] == run) & (result.sets["role"] == "top")
        top &= result.sets["k"] == 3
        after = result.values[top.to_numpy()][0, :, m] > 0.5
        assert row["after"] == after.mean()
        before = result.twin[:, m] > 0.5 if run == "denoise" else result.kept
        assert (row["lost"], row["gained"]) == ((before & ~after).sum(), (~before & after).sum())
    assert frame.loc["zero", "lost"] >= 8 and frame.loc["zero", "p"] < 0.01
    assert frame.loc["denoise", "gained"] >= 8


def test_result_survives_saving(result, tmp_path):
    again = ValidationResult.load(result.save(tmp_path / "run"))
    assert again.settings == json.loads(json.dumps(result.settings))
    assert np.array_equal(again.values, result.values, equal_nan=True)
    assert again.findings == result.findings
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(record["findings"]) == 6 and record["ablations"]["zero"] == "z = 0"
    (tmp_path / "run" / "tensors.safetensors").write_bytes(b"short")
    with pytest.raises(ResultError, match="damaged"):
        ValidationResult.load(tmp_path / "run")


def test_a_killed_run_goes_on_where_it_was(scanned, tmp_path):
    model, truth, _ = scanned
    heads = [*truth.heads("copy"), *truth.heads("previous")]
    settings = ValidateSettings(**FAST, top=2)

    class KilledError(Exception):
        pass

    def kill(done, _total, _what):
        if done >= 12:
            raise KilledError

    with pytest.raises(KilledError):
        validate(model, heads, settings, parts=tmp_path / "parts", progress=kill)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("*.safetensors")}
    assert len(kept) >= 10
    again = validate(model, heads, settings, parts=tmp_path / "parts")
    for name, mtime in kept.items():
        assert (tmp_path / "parts" / name).stat().st_mtime_ns == mtime
    assert again.findings == validate(model, heads, settings).findings
    other = ValidateSettings(**(FAST | {"seed": 1}), top=2)
    with pytest.raises(ResultError, match="another run"):
        validate(model, heads, other, parts=tmp_path / "parts")


def test_the_published_preset_generates_and_judges_by_rouge(scanned):
    model, truth, _ = scanned
    heads = [*truth.heads("copy"), *truth.heads("previous")]
    base = {k: v for k, v in FAST.items() if k != "ablations"} | {"n_needles": 4}
    settings = with_preset(ValidateSettings(**base, top=2), "wu2024")
    assert (settings.ablations, settings.scope, settings.metric) == (
        ("uniform",),
        "decode",
        "rouge",
    )
    r = validate(model, heads, settings)
    effect = r.findings[0].effect
    assert effect.metric.startswith("ROUGE") and effect.baseline == 1 and effect.scope == "decode"
    assert effect.n_draws == 20 and "denoise" in r.missing()


def test_everywhere_acts_on_the_context_too(scanned):
    model, truth, _ = scanned
    heads = [*truth.heads("previous"), *truth.heads("copy")]
    settings = ValidateSettings(**(FAST | {"n_needles": 4}), top=2, scope="everywhere")  # fmt: skip
    r = validate(model, heads, settings)
    by = {f.effect.direction: f.effect for f in r.findings}
    assert by["ablate"].scope == "everywhere" and by["denoising"].scope == "suffix"
    assert by["ablate"].n_draws == 49 and by["ablate"].effect < -2


BAD = {
    "an unknown head": (["L9H0"], {}, SiteError, "no head L9H0"),
    "no head": ([], {}, ResultError, "no head"),
    "more heads than given": (["L1H0"], {"top": 2}, ResultError, "more heads"),
    "a set larger than its pool": (
        [f"L1H{h}" for h in range(5)], {"top": 5}, ResultError, "layer 1"),
    "an unknown ablation": (["L1H0"], {"ablations": ("men",)}, UnknownNameError, "mean mean"),
    "a metric without text": (["L1H0"], {"metric": "rouge"}, PromptError, "--generate"),
    "too few sets": (["L1H0"], {"n_draws": 5}, PromptError, "39 or more"),
    "knock-out everywhere": (
        ["L1H0"], {"scope": "everywhere", "ablations": ("knockout",)}, PromptError, "knockout"),
    "an unknown scope": (["L1H0"], {"scope": "all"}, UnknownNameError, "scope"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_the_model_runs(scanned, bad, tmp_path):
    model, _, _ = scanned
    heads, options, error, words = bad
    settings = ValidateSettings(**(FAST | {"top": 1} | options))
    with pytest.raises(error, match=words) as caught:
        validate(model, heads, settings, parts=tmp_path / "parts")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "parts").exists()


def test_a_model_that_answers_nothing_could_not_be_measured():
    model, _ = worlds.world("none")
    with pytest.raises(ResultError, match="answered by the unablated model"):
        validate(model, ["L1H0"], ValidateSettings(**FAST, top=1))


def test_a_scan_of_another_model_is_refused(scanned):
    _, _, scanned_result = scanned
    other, _ = worlds.world("induction_pair", seed=1)
    with pytest.raises(ResultError, match="load the same model"):
        validate(other, scanned_result, ValidateSettings(**FAST, top=2))


@pytest.fixture(scope="module")
def traced(scanned):
    model, truth, _ = scanned
    return find_circuit(
        model, truth.heads("copy"), n_needles=4, length=101, receivers=1, senders=3, n_random=5,
        prompts=tuple(worlds.PROMPTS.items()),
    )  # fmt: skip


def test_the_circuit_is_the_planted_pair(scanned, traced, tmp_path):
    _, truth, _ = scanned
    (previous,), (copy,) = truth.heads("previous"), truth.heads("copy")
    graph = traced.graph()
    assert "k" in graph.edges[str(previous), str(copy)]["channel"]
    assert graph.has_edge(str(copy), "logits")
    best = traced.edges.iloc[0]
    assert (best["sender"], best["receiver"], best["channel"]) == (str(previous), str(copy), "k")
    pair = traced.faithfulness.query("ranking == 'attribution' and size == 2").iloc[0]
    assert pair["faithfulness"] > 0.9 and pair["completeness"] < 0.1
    assert traced.areas["attribution"]["CPR"] > traced.areas["random"]["CPR"]
    again = CircuitResult.load(traced.save(tmp_path / "run"))
    assert sorted(again.graph().edges) == sorted(graph.edges)
    for name in ("circuit.graphml", "circuit.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    with pytest.raises(ResultError, match="graphml"):
        traced.export(tmp_path / "graph.png")


def test_heads_of_the_first_layer_have_nothing_that_feeds_them(scanned):
    model, truth, _ = scanned
    with pytest.raises(ResultError, match="first layer"):
        find_circuit(model, truth.heads("previous"), n_needles=2, length=101,
                     prompts=tuple(worlds.PROMPTS.items()))  # fmt: skip


def test_patching_both_ways_follows_the_value_to_the_answer(scanned, tmp_path):
    model, truth, _ = scanned
    r = patch(model, n_needles=3, length=101, layers=0, n_confirm=6,
              prompts=tuple(worlds.PROMPTS.items()))  # fmt: skip
    frame = r.to_frame("share").set_index(["direction", "site", "layer", "head", "class"])["effect"]
    last = model.spec.n_layers - 1
    copy = truth.heads("copy")[0]
    for direction in ("noising", "denoising"):
        # before the copy the value's own place carries it, after it the answer's row
        assert frame[direction, "resid_pre", 0, -1, "value"] == pytest.approx(1, abs=0.02)
        assert frame[direction, "resid_pre", copy.layer + 1, -1, "answer"] == pytest.approx(
            1, abs=0.05
        )
        assert abs(frame[direction, "resid_pre", last, -1, "context"]) < 0.02
        heads = r.rows.query(f"direction == '{direction}' and site == 'z'")
        best = heads.groupby(["layer", "head"])["share"].mean().idxmax()
        assert best == (copy.layer, copy.head)
    again = PatchResult.load(r.save(tmp_path / "run"))
    assert again.rows.equals(r.rows) and again.agreement == r.agreement
    with pytest.raises(SiteError, match="cannot patch q"):
        patch(model, sites=("q",))


def test_the_names_are_there():
    for name in ("validate", "ValidateSettings", "ValidationResult", "patch", "find_circuit"):
        assert getattr(circuits, name)


def test_scores_of_a_published_file_are_fitted_to_the_model(scanned, tmp_path):
    """Such a file names no more heads than it scores: its matrix is smaller than the model's."""
    model, truth, _ = scanned
    head = truth.heads("copy")[0]
    path = tmp_path / "wu.json"
    path.write_text(json.dumps({f"{head.layer}-{head.head}": [1.0], "0-0": [0.5]}))
    r = validate(model, path, ValidateSettings(**(FAST | {"alone": True}), top=2))
    assert r.scores.shape == (3, 8) and r.scores[head.layer, head.head] == 1
    assert len(r.alone_frame()) == 24 and r.score_against_effect() is None
