import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from apps.console import Lines
from apps.validation_figures import FIGURES
from apps.validation_page import answer, write_page
from apps.validation_report import finish, summary
from circuits.validation_result import ValidationResult
from interp.errors import ResultError

_spec = importlib.util.spec_from_file_location(
    "validation_fixture", Path(__file__).with_name("test_validation_figures.py")
)
_fixture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixture)
validation, single_head, BAD = _fixture.validation, _fixture.single_head, _fixture.BAD


@pytest.fixture(scope="module")
def result():
    return validation()


def only(result, *runs):
    """The same result with only these runs."""
    keep = result.sets["ablation"].isin(runs).to_numpy()
    settings = result.settings | {"ablations": [r for r in runs if r != "denoise"]}
    return replace(
        result,
        settings=settings,
        sets=result.sets[keep].reset_index(drop=True),
        values=result.values[keep],
    )


def bare(result):
    """Without the parts that a run may leave out."""
    none, table = np.empty(0), pd.DataFrame()
    return replace(result, alone=none, scores=none, direct=table, specificity=table)


def text_of(result, tmp_path):
    """The page without plotly.js."""
    text = write_page(result, tmp_path / "page.html").read_text("utf-8")
    return text.replace(get_plotlyjs(), "")


def test_the_page_is_one_offline_file(result, tmp_path):
    path = write_page(result, tmp_path / "new" / "page.html")
    text = path.read_text("utf-8")
    assert text.count(get_plotlyjs()) == 1
    rest = text.replace(get_plotlyjs(), "")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(""", rest)
    assert re.findall(r"<(link|iframe|img|script[^>]*src)", rest) == []
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_text_from_outside_is_escaped(result, tmp_path):
    command = f"mnemoscope validate {BAD}"
    bad = replace(
        result,
        provenance=replace(result.provenance, model=f"toy{BAD}"),
        settings=result.settings | {"command": command, "source": BAD, "scope": BAD},
        cases=result.cases.assign(needle=[f"{BAD}{n}" for n in result.cases["needle"]]),
        notes=(BAD,),
    )
    text = text_of(bad, tmp_path)
    assert BAD not in text
    assert "mnemoscope validate &lt;script&gt;" in text


def test_every_figure_and_table_is_there(result, tmp_path):
    text = text_of(result, tmp_path)
    for kind in FIGURES:
        assert text.count(f'id="figure-{kind}"') == 1
    for finding in result.findings:
        assert finding.claim in text
        assert finding.reason.replace("'", "&#x27;") in text
    table = text.split("All controls")[1].split("<h2>")[0]
    assert table.count("<tr>") == 1 + len(result.controls())
    for formula in ("z = 0", "over reference prompts", "twin prompt, which states another value"):
        assert formula in text
    assert "A note." in text
    assert "How to make this again" not in text


def test_the_answer_is_computed_from_the_result(result):
    said = answer(result)
    away = [f.effect for f in result.findings if f.effect.direction != "denoising"]
    back = next(f.effect for f in result.findings if f.effect.direction == "denoising")
    low, high = (f(e.effect for e in away) for f in (min, max))
    assert f"changes the log-probability of the answer by {low:+.2f} to {high:+.2f} nats" in said
    assert f"by {back.effect:+.2f} nats (random sets: {back.control - back.baseline:+.2f})" in said
    assert "necessary is supported (all 3 ablations agree)" in said
    assert "sufficient is supported" in said
    other = result.specificity
    plain = other["change"][(other["kind"] == "plain text") & (other["role"] == "top")].mean()
    assert f"token by {plain:+.2f} nats" in said
    assert "11 questions about 6 needles" in said
    assert "99 random sets" in said


def test_the_answer_says_where_ablations_disagree(result):
    values = result.values.copy()
    zero = (result.sets["ablation"] == "zero") & (result.sets["role"] == "top")
    values[zero.to_numpy()] = result.start
    said = answer(replace(result, values=values))
    assert "whether they are necessary depends on the ablation (mean supported, zero " in said


@pytest.mark.parametrize(
    ("runs", "said", "unsaid"),
    [(("mean", "zero"), "necessary", "sufficient"), (("denoise",), "sufficient", "necessary")],
)
def test_only_the_direction_that_was_run_is_claimed(result, runs, said, unsaid, tmp_path):
    part = only(result, *runs)
    if not part.settings["ablations"]:
        part = replace(part, settings=part.settings | {"ablations": ["resample"]})
    text = text_of(part, tmp_path)
    assert said in text
    assert unsaid not in text
    assert said in answer(part)


def test_negative_heads_are_listed_apart(result, tmp_path):
    frame = result.alone_frame()
    gain = frame[frame["kind"] == "negative"].sort_values("effect", ascending=False)
    assert 0 < len(gain) < len(frame)
    table = text_of(result, tmp_path).split("<h2>Negative heads</h2>")[1].split("<h2>")[0]
    assert re.findall(r"<td>(L\d+H\d+)</td>", table) == list(gain["name"])
    assert f"{len(gain)} of 18 heads" in table


def test_what_was_left_out_is_named_with_its_reason(result, tmp_path):
    text = text_of(bare(result), tmp_path)
    for kind in ("alone", "repair", "score_effect", "specificity"):
        assert f"No {kind} figure: " in text
    assert "No negative heads are known" in text
    assert text.count('id="figure-') == 3
    text_of(single_head(), tmp_path)


def test_nothing_measured_still_makes_a_page(result, tmp_path):
    lost = replace(result, values=result.values * np.nan)
    assert "No effect could be measured" in answer(lost)
    assert "No effects figure: " in text_of(lost, tmp_path)


def test_finish_saves_writes_and_prints(result, tmp_path, capsys):
    finish(result, tmp_path / "run", Lines(quiet=False), as_json=False)
    said = capsys.readouterr().out
    first = result.findings[0].effect
    for number in (first.baseline, first.treated, first.control, first.effect, first.low):
        assert f"{number:.2f}" in said
    assert "necessary" in said
    assert "all 3 ablations agree: supported" in said
    assert "note: a note" in said
    assert "page.html" in said
    assert (tmp_path / "run" / "page.html").exists()
    again = ValidationResult.load(tmp_path / "run")
    assert [f.verdict for f in again.findings] == [f.verdict for f in result.findings]


def test_json_is_plain(result, tmp_path, capsys):
    for made in (result, single_head(), bare(result)):
        finish(made, tmp_path / "run", Lines(quiet=True), as_json=True)
        said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert len(said["findings"]) == len(made.findings)
        assert said["findings"][0]["effect"]["effect"] == made.findings[0].effect.effect
        assert said["questions"] == 11
    assert said["negative_heads"] is None
    assert summary(result, tmp_path)["score_against_effect"]["rho"] is not None


def test_a_run_that_measured_nothing_is_saved_and_refused(result, tmp_path):
    lost = replace(result, values=result.values * np.nan)
    with pytest.raises(ResultError, match="no effect could be measured") as error:
        finish(lost, tmp_path / "run", Lines(quiet=True), as_json=True)
    assert "\n" not in str(error.value)
    assert (tmp_path / "run" / "page.html").exists()
