"""The whole measurement: right about models compiled by hand, refused where there is no binding."""

import json

import bindings
import numpy as np
import pytest

from circuits.binding_analysis import competence, conclude
from circuits.binding_calibration import _held
from circuits.binding_findings import control_table, pointer_findings, word_effect
from circuits.binding_heads import find_heads, overlap
from circuits.binding_layer import LayerChoice, choose_layer
from circuits.binding_plan import BindSettings, plan_studies
from circuits.binding_result import BindingResult
from circuits.binding_run import binding
from circuits.binding_study import CONTROL, MAIN, Records
from circuits.competence import says
from interp.errors import PromptError, ResultError, UnknownNameError
from interp.sites import Head

NAMED = {
    "mixture": {"positional", "lexical", "reflexive"},
    "positional": {"positional"},
    "lexical": {"lexical"},
    "reflexive": {"reflexive"},
    "switching": {"positional", "lexical", "reflexive"},
}


@pytest.mark.parametrize("name", NAMED)
def test_what_was_planted_is_named_and_nothing_else(name):
    study = bindings.result(name).study()
    _, truth, _ = bindings.world(name)
    assert study.layer == truth.pointer_layer
    assert study.conclusion["layer"]["takeover"] == truth.answer_layer
    assert set(study.conclusion["verdict"]["named"]) == NAMED[name]
    assert study.conclusion["self_change"] < 1e-4


@pytest.mark.parametrize("name", ["mixture", "positional", "lexical", "reflexive"])
def test_weights_come_within_two_percent_and_the_width_within_a_twentieth(name):
    held = _held(bindings.result(name).study(), bindings.world(name)[1])
    assert held["weights_off"] < 0.02
    assert held["sigma_off"] is None or held["sigma_off"] < 0.05


def test_a_copied_answer_is_no_pointer():
    study = bindings.result("answer_copy").study()
    assert study.conclusion["verdict"]["abstained"] and study.layer is None
    curve = study.sweep().set_index("layer")
    # the look-alike: in the main design it cannot be told from a reflexive pointer
    assert curve.loc[3, "reflexive"] > 0.9 and curve.loc[3, "copied"] > 0.9
    honest = bindings.result("reflexive").study().sweep().set_index("layer")
    assert honest.loc[3, "reflexive"] > 0.9 and honest.loc[3, "copied"] == 0


def test_a_copied_answer_is_found_out_by_the_control_where_the_layer_is_given():
    model, _, path = bindings.world("answer_copy")
    study = binding(
        model, tasks=str(path), n=8, layer=3, heads=False, **bindings.SMALL
    ).study()  # fmt: skip
    assert study.conclusion["verdict"]["abstained"]
    assert "copied, not pointed to" in study.verdict


def test_a_mixture_of_prompts_is_no_mixture_in_a_prompt():
    within = bindings.result("mixture").study().conclusion["mixture"]["case_level"]
    between = bindings.result("switching").study().conclusion["mixture"]["case_level"]
    assert within["verdict"] == "within prompts" and between["verdict"] == "between prompts"


def test_a_model_that_cannot_do_the_task_is_refused_in_words():
    study = bindings.result("incompetent").study()
    assert study.layer is None and len(study.records) == 0
    assert "there is no binding to explain" in study.verdict
    assert study.conclusion["competence"]["accuracy"] < 0.5


@pytest.mark.real
def test_the_small_bundled_model_is_refused(real):
    result = binding(real, tasks="boxes", targets="object", n=4, n_preflight=3)
    study = result.study()
    assert study.conclusion["verdict"]["abstained"] and not study.conclusion["competence"]["passed"]
    assert "floor 50%" in study.verdict


def test_answers_led_by_words_are_noted():
    spread, p = word_effect(bindings.result("mixture").study().records, 3)
    assert p > 0.05 or spread < 0.05
    study = binding(
        bindings.world("word_prior")[0], tasks=str(bindings.world("word_prior")[2]), n=8,
        heads=False, **bindings.SMALL,
    ).study()  # fmt: skip
    assert study.conclusion["words"]["p"] < 0.05
    assert any("which words" in note for note in study.conclusion["verdict"]["notes"])


def test_the_mixture_predicts_what_the_unpatched_model_does():
    found = bindings.result("mixture").study().conclusion["mixture"]["behaviour"]
    assert found["error"] < 1e-3 and found["error"] < found["flat"]


def test_writers_and_readers_are_the_planted_heads():
    model, truth, ready, _ = bindings.ready("mixture")
    found = find_heads(model, ready, truth.pointer_layer)
    first = {Head(r["layer"], r["head"]) for r in found["write"][:2]}
    assert first == {truth.heads["gather_a"], truth.heads["gather_c"]}
    assert all(abs(r["effect"]) < 1e-3 for r in found["write"][2:])
    readers = {Head(r["layer"], r["head"]): r for r in found["read"][:3]}
    for name in ("positional", "lexical", "reflexive"):
        row = readers[truth.heads[name]]
        assert row["effect"] > 0.05 > row["control"]
        assert min(("positional", "lexical", "reflexive"), key=lambda m: row[m]) == name
    assert found["read_all"]["effect"] > found["read_all"]["control"] + 0.2


def test_overlap_is_beside_what_chance_gives():
    rows = [{"layer": 0, "head": h} for h in range(4)]
    found = overlap(rows, [Head(0, 0), Head(0, 1), Head(1, 0), Head(1, 1)], n_heads=16)
    assert found["shared"] == 2 and found["by_chance"] == 1.0
    # two or more of four by hand: 1 - C(12,4)/C(16,4) - 4 C(12,3)/C(16,4)
    assert found["p"] == pytest.approx(1 - 495 / 1820 - 4 * 220 / 1820)


# -- records are enough -----------------------------------------------------------------------


def test_a_saved_run_is_judged_again_from_its_records(tmp_path):
    result = bindings.result("mixture")
    result.save(tmp_path / "run")
    again = BindingResult.load(tmp_path / "run")
    study, old = again.study(), result.study()
    settings = BindSettings(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in again.settings.items()}
    )
    able = competence(study.preflight, settings.floor)
    choice = choose_layer(study.records)
    assert choice == LayerChoice(**study.conclusion["layer"])
    found = conclude(study.records, choice, settings, n=study.n, able=able)
    wanted = json.loads(json.dumps(old.conclusion))
    assert json.loads(json.dumps(found))["findings"] == wanted["findings"]
    assert found["verdict"] == old.conclusion["verdict"]
    assert again.to_frame().equals(result.to_frame())
    assert (study.records.logits == old.records.logits).all()


def test_shares_are_counted_from_the_records():
    study = bindings.result("mixture").study()
    main = study.records.of(MAIN, design="main", layer=study.layer)
    share = study.shares().set_index(["i_p", "label"])["share"]
    for p in range(8):
        rows = main.rows[main.rows["i_p"] == p]
        best = main.logits[rows.index].argmax(1)
        assert share[p, "positional"] == pytest.approx(np.mean(best == p))
        assert share[p, "lexical"] == pytest.approx(np.mean(best == rows["i_l"]))


def synthetic(copied=0.0, agreed=1.0, n=6, sets=8, follow="i_p", seed=0):
    """Records of a made-up model that follows one pointer, without any model."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    rows, logits = [], []
    for k in range(sets):
        for design, stage in (("main", MAIN), ("absent_answer", CONTROL), ("agree_all", CONTROL)):
            for _ in range(12):
                p, i_l, i_r, i_n = (int(v) for v in rng.permutation(n)[:4])
                if design == "agree_all":
                    i_l = i_r = p
                if design == "absent_answer":
                    i_r = -1
                said = {"i_p": p, "i_l": i_l, "i_r": i_r}[follow]
                hit = rng.random() < (agreed if design == "agree_all" else 0.9)
                answer = said if hit and said >= 0 else i_n
                name = "positional" if answer == p else "no_effect"
                if design == "absent_answer" and rng.random() < copied:
                    name = "copied"
                rows.append(dict(zip(
                    ("stage", "design", "layer", "set", "donor", "i_p", "i_l", "i_r", "i_n", "top",
                     "said", "label", "mass", "p_said", "self_change"),
                    (stage, design, 3, k, 0, p, i_l, i_r, i_n, answer, 99, name, 1.0, 0.0, 0.0),
                    strict=True)))  # fmt: skip
                logits.append(np.where(np.arange(n) == answer, 5.0, 0.0))
    arrays = np.array(logits)
    own = np.stack([np.where(np.arange(n) == r["i_n"], 5.0, 0.0) for r in rows])
    words = np.tile(np.arange(n), (len(rows), 1))
    return Records(pd.DataFrame(rows), arrays, own, words)


def test_only_the_pointer_that_is_followed_is_supported():
    for follow, name in (("i_p", "positional"), ("i_l", "lexical"), ("i_r", "reflexive")):
        found = {f.effect.name: f for f in pointer_findings(synthetic(follow=follow), 3)}
        assert {k for k, f in found.items() if f.verdict == "supported"} == {name}
        effect = found[name].effect
        assert effect.direction == "interchange" and effect.treated > 0.8 > effect.control
        assert f"a {name} pointer leads to the answer" in found[name].claim


def test_controls_pass_and_fail():
    table = {c.design: c for c in control_table(synthetic())}
    assert table["absent_answer"].passed and table["agree_all"].passed
    table = {c.design: c for c in control_table(synthetic(copied=0.9, agreed=0.1))}
    assert table["absent_answer"].passed is False and table["agree_all"].passed is False
    table = {c.design: c for c in control_table(synthetic(copied=0.25, sets=4))}
    assert table["absent_answer"].passed is None  # the interval holds the bound


def test_a_failed_control_is_an_abstention():
    settings = BindSettings(bootstrap=2)
    able = {"answer_by_group": [0.9] * 6, "reason": ""}
    for bad, told in (
        ({"copied": 0.9}, "copied, not pointed"),
        ({"agreed": 0.1}, "pointers agree"),
    ):
        found = conclude(
            synthetic(**bad), LayerChoice(3, 4, "given"), settings, n=6, able=able
        )  # fmt: skip
        assert found["verdict"]["abstained"] and told in found["verdict"]["sentence"]


# -- runs -------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_and_gives_the_same(tmp_path):
    model, _, path = bindings.world("positional")
    options = {"tasks": str(path), "n": 8, "heads": False} | bindings.SMALL | {"n_sets": 3}
    whole = binding(model, **options)
    seen = []

    def stop(done, total, words):
        seen.append((done, total, words))
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        binding(model, parts=tmp_path, progress=stop, **options)
    again = binding(model, parts=tmp_path, progress=lambda *a: seen.append(a), **options)
    assert again.study().conclusion == whole.study().conclusion
    assert seen[-1][0] == seen[-1][1] and "planted_fruits" in seen[-1][2]
    with pytest.raises(ResultError, match="parts of another run"):
        binding(model, parts=tmp_path, **(options | {"seed": 7}))


def test_bad_settings_are_refused_before_anything_is_read():
    model, _, path = bindings.world("mixture")
    for options, error, told in (
        ({"n": 3}, PromptError, "cannot separate four outcomes"),
        ({"n": 40}, PromptError, "one token, 41 are needed"),
        ({"targets": "fruits"}, UnknownNameError, "did you mean fruit"),
        ({"controls": ("agree",)}, UnknownNameError, "design"),
        ({"style": "chat"}, PromptError, "no chat template"),
        ({"layer": 99}, PromptError, "the model has 0-6"),
        ({"filler": (-1,)}, PromptError, "out of range"),
        ({"filler_kind": "rude"}, UnknownNameError, "kind of filler"),
        ({"n": (8, 8)}, PromptError, "asked for twice"),
    ):
        with pytest.raises(error, match=told) as caught:
            binding(model, **({"tasks": str(path), "style": "completion"} | options))
        assert "\n" not in str(caught.value)


@pytest.mark.real
def test_words_that_split_are_left_out_and_named_when_too_few_are_left(real):
    study = plan_studies(real.tokenizer, BindSettings(targets=("genre",)))[0]
    assert "reggae" in study.dropped and "reggae" not in study.task.pools["genre"]
    with pytest.raises(PromptError, match=r"pool genre has .*\(.*split into several tokens\)"):
        plan_studies(real.tokenizer, BindSettings(targets=("genre",), n=(26,)))


def test_a_generated_answer_is_the_word_and_not_a_part_of_one():
    assert says(" piano music.", "piano") and says('"Piano"', "piano")
    assert not says(" platinum", "tin") and not says(" pianos", "piano")


def test_older_measurements_are_kept_one_by_one(tmp_path):
    from circuits.binding_classics import CLASSICS

    model, _, path = bindings.world("positional_sharp")
    options = {"tasks": str(path), "n": 8, "heads": False, "classics": True} | bindings.SMALL
    seen = []

    def stop(_done, _total, words):
        seen.append(words)
        if words.endswith(": factorizability"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        binding(model, parts=tmp_path, progress=stop, **options)
    kept = {p.name for p in tmp_path.iterdir()}
    assert any(name.endswith("-id_swaps.safetensors") for name in kept)
    assert not any(name.endswith("-factorizability.safetensors") for name in kept)
    found = binding(model, parts=tmp_path, **options).study().conclusion["classics"]
    assert list(found) == list(CLASSICS)
    assert all(part["rows" if "rows" in part else "swap"] for part in found.values())
