"""Calibration: rows for everything, numbers that the planted circuits dictate, refusals."""

import json
import math
from dataclasses import replace
from importlib import import_module

import pandas as pd
import pytest

import interp
from apps import calibration_view as view
from circuits.calibration import N_DRAWS, calibrate, of_one_ablation
from circuits.calibration_result import CalibrationResult
from circuits.calibration_truth import ABLATIONS, SPECIAL, TESTS, THRESHOLDS, expected, is_right
from circuits.scores import METRICS
from circuits.validation import validate
from circuits.validation_plan import ValidateSettings
from interp.errors import PromptError, ResultError, UnknownNameError
from probes.planted import PLANTED, build, write_materials

running = import_module("circuits.calibration")  # of the package, the function is seen
MODELS = ("induction_pair", "attends_only", "backup", "none")
LOOKING = ("copy", "copy_exact", "mass", "frequency", "induction")
"""Detectors that see where a head looks, and not what it writes."""


@pytest.fixture(scope="module")
def result():
    return calibrate(models=MODELS, seeds=1)


def detector(result, model, name, truth):
    table = result.detectors.set_index(["model", "detector", "truth"])
    return table.loc[(model, name, truth)]


# -- what is there ----------------------------------------------------------------------------


def test_every_detector_has_a_threshold_and_every_row_is_there(result):
    assert set(THRESHOLDS) == set(METRICS)
    assert len(result.detectors) == len(MODELS) * len(METRICS) * 2
    claims = sum(len(PLANTED[name].claims) for name in MODELS)
    assert len(result.claims) == claims * len(TESTS)
    assert set(result.claims["test"]) == {*ABLATIONS, "denoise"}
    assert list(result.repair["model"]) == ["induction_pair", "attends_only", "backup"]


def test_counts_of_heads_add_up(result):
    total = result.detectors["true"] + result.detectors["false"]
    assert (total == 3 * running.N_HEADS).all()
    assert (result.detectors["found"] <= result.detectors["true"]).all()
    named = result.detectors["fooled_by"].map(
        lambda text: sum(int(part.rsplit(" ", 1)[1]) for part in text.split(", ") if part)
    )
    assert (named == result.detectors["fooled"]).all()


# -- detectors --------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", ["attends", "causal"])
def test_copy_score_finds_a_plain_copying_head(result, truth):
    row = detector(result, "induction_pair", "copy", truth)
    assert (row["auroc"], row["fooled"], row["found"], row["true"]) == (1.0, 0, 1, 1)
    assert row["power_low"] == pytest.approx(0.025) and row["power_high"] == 1.0


@pytest.mark.parametrize("name", LOOKING)
def test_what_sees_attention_alone_is_fooled_by_a_head_that_only_looks(result, name):
    row = detector(result, "attends_only", name, "causal")
    assert "look 1" in row["fooled_by"] and row["fpr"] > 0
    assert "look" not in detector(result, "attends_only", name, "attends")["fooled_by"]


def test_write_score_is_not_fooled_by_it(result):
    row = detector(result, "attends_only", "write", "causal")
    assert row["auroc"] == 1.0 and row["found"] == 1 and "look" not in row["fooled_by"]


def test_without_true_heads_there_is_no_auroc_and_no_power(result):
    row = detector(result, "none", "copy", "attends")
    assert math.isnan(row["auroc"]) and math.isnan(row["power"]) and row["fooled"] == 0


# -- verdicts ---------------------------------------------------------------------------------


def test_verdicts_are_right_but_where_the_mean_leaves_other_answers_behind(result):
    wrong = result.mistakes()
    found = set(zip(wrong["model"], wrong["claim"], wrong["test"], strict=True))
    # a mean of copied values is a mixture of wrong answers, which the backup has to drown
    assert found <= {("backup", "copy", "mean")}
    judged = result.claims[result.claims["expected"].notna()]
    assert judged["right"].notna().all()


def test_a_model_that_never_answers_is_left_open(result):
    rows = result.claims[result.claims["model"] == "none"]
    assert (rows["verdict"] == "inconclusive").all() and rows["right"].all()
    assert rows["reason"].str.startswith("could not be measured: ").all()


def test_a_test_without_a_right_verdict_is_shown_and_not_judged(result):
    row = result.claims[result.claims["right"].isna()].iloc[0]
    assert (row["model"], row["claim"], row["test"]) == ("backup", "copy", "resample")
    assert row["effect"] < -0.5 and "ties" in row["why"]


def test_repair_is_seen_where_there_is_a_backup_and_nowhere_else(result):
    table = result.repair.set_index("model")
    assert table["seen"].to_dict() == {
        "induction_pair": False, "attends_only": False, "backup": True,
    }  # fmt: skip
    backup, plain = table.loc["backup"], table.loc["induction_pair"]
    assert backup["direct"] < -2 and backup["total"] > -0.5
    assert plain["direct"] == pytest.approx(plain["total"], abs=0.1)


def test_a_part_of_a_validation_is_the_validation_with_one_ablation(tmp_path):
    planted = build("attends_only")
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    options = write_materials(tmp_path).scan
    settings = ValidateSettings(
        top=1, ablations=("zero", "uniform"), scope="decode", length=options["lengths"][0],
        depths=(0.5,), n_needles=3, n_draws=59, curve=(), alone=False, specificity=False,
        prompts=tuple((name, options[name]) for name in running.PROMPTS),
    )  # fmt: skip
    heads = planted.truth.heads("copy")
    whole = validate(model, heads, settings)
    alone = validate(model, heads, replace(settings, ablations=("uniform",)))
    assert of_one_ablation(whole, "uniform").findings == alone.findings
    assert whole.findings[1].effect.p_holm > alone.findings[0].effect.p_holm


def test_exceptions_are_about_claims_that_exist():
    for row in SPECIAL:
        claims = [c for c in PLANTED[row.model].claims if c.roles == row.roles]
        assert claims and set(row.tests) <= set(TESTS) and row.why
        assert expected(row.model, claims[0], row.tests[0]) == (row.expected, row.why)


def test_no_effect_is_right_where_nothing_is_changed():
    assert is_right("unsupported", "not applicable") and is_right("supported", "supported")
    assert is_right("inconclusive", "unsupported") is False
    assert is_right("supported", "not applicable") is False
    assert is_right("supported", None) is None


# -- summary, files, faces --------------------------------------------------------------------


def test_summary_pools_counts_and_tells_power_from_false_alarms(result):
    summary = result.summary()
    copy = next(
        r for r in summary["detectors"] if (r["truth"], r["detector"]) == ("causal", "copy")
    )
    rows = result.detectors[
        (result.detectors["detector"] == "copy") & (result.detectors["truth"] == "causal")
    ]
    assert copy["fpr_of"] == f"{rows['fooled'].sum()}/{rows['false'].sum()}"
    assert copy["models"] == rows["auroc"].notna().sum() == 2
    zero = next(r for r in summary["tests"] if r["test"] == "zero")
    assert (zero["power_of"], zero["false_of"]) == ("3/3", "0/3")
    assert summary["repair"][0]["right_of"] == "3/3"
    assert json.dumps(summary, allow_nan=False)


def test_saves_and_loads_whole(result, tmp_path):
    again = CalibrationResult.load(result.save(tmp_path / "run"))
    for name in ("detectors", "claims", "repair"):
        pd.testing.assert_frame_equal(again.to_frame(name), result.to_frame(name))
    assert again.summary() == result.summary()
    assert again.provenance == result.provenance and again.settings == result.settings
    (tmp_path / "run" / "claims.parquet").unlink()
    with pytest.raises(ResultError, match="damaged"):
        CalibrationResult.load(tmp_path / "run")


def test_tables_say_what_they_count(result, capsys):
    view.print_tables(result)
    said = capsys.readouterr().out
    assert "4 planted models, 1 seed each" in said and "nan" not in said.lower()
    text = view.markdown(result)
    assert text.count("| copy |") == 1 and "| denoise |" in text and "40 heads a layer" in text
    assert "nan" not in text.lower() and "Calibration on 4 planted" in result._repr_html_()


def test_figure_shows_numbers_and_marks_what_is_not_judged(result):
    fig = result.figure()
    areas, empty, verdicts, grey = fig.data
    assert areas.text[list(areas.y).index("copy"), list(areas.x).index("induction_pair")] == "1.000"
    assert empty.text[list(areas.y).index("copy"), list(areas.x).index("none")] == "–"
    at = list(verdicts.y).index("resample"), list(verdicts.x).index("backup: copy")
    assert verdicts.text[at] == "" and grey.text[at] == "–" and grey.z[at] == 0
    assert "1 seed" in fig.layout.title.text


# -- input ------------------------------------------------------------------------------------


def test_goes_on_after_finished_models(tmp_path, monkeypatch):
    first = calibrate(models=("none",), seeds=1, folder=tmp_path)
    monkeypatch.setattr(running, "build", None)
    again = calibrate(models=("none",), seeds=1, folder=tmp_path)
    pd.testing.assert_frame_equal(again.claims, first.claims)
    assert first.repair.empty and "repair" in first.summary()
    assert first.save(tmp_path / "out") and view.markdown(first) and view.draw(first).data
    with pytest.raises(ResultError, match="seeds differ"):
        calibrate(models=("none",), seeds=2, folder=tmp_path)


def test_bad_input_is_refused_in_one_line():
    with pytest.raises(UnknownNameError, match="did you mean backup") as caught:
        calibrate(models=("backups",))
    assert "\n" not in str(caught.value)
    for bad in ({"models": ()}, {"seeds": 0}, {"n_draws": N_DRAWS - 1}, {"scope": "everywhere"}):
        with pytest.raises(PromptError):
            calibrate(**bad)
    with pytest.raises(UnknownNameError):
        calibrate(scope="suffixes")
