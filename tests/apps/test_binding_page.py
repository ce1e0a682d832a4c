"""The page and the printed end of binding runs, on the records of the figures' tests."""

import html
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from apps.binding_figures import FIGURES
from apps.binding_fit_figures import study_name
from apps.binding_page import OPEN, answer, overview, page
from apps.binding_report import finish, markdown, summary
from apps.console import Lines
from circuits.binding_result import BindingResult

_spec = importlib.util.spec_from_file_location(
    "binding_fixture", Path(__file__).with_name("test_binding_figures.py")
)
world = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(world)


@pytest.fixture(scope="module")
def result():
    return world.four()


@pytest.fixture(scope="module")
def text(result):
    return text_of(result)


def text_of(result):
    """The page without plotly.js."""
    return page(result).replace(get_plotlyjs(), "")


def with_conclusion(result, **parts):
    """The same result whose first study concludes otherwise; None takes a part out."""
    s = result.study()
    found = {k: v for k, v in (s.conclusion | parts).items() if v is not None}
    return replace(result, studies={s.key: replace(s, conclusion=found)}, hypotheses=[])


def test_the_page_is_one_offline_file(result):
    text = page(result)
    assert text.count(get_plotlyjs()) == 1
    rest = text.replace(get_plotlyjs(), "")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(""", rest)
    assert not re.findall(r"<(link|iframe|img|script[^>]*src)", rest)
    assert "http" not in re.sub(r"<script.*?</script>", "", rest, flags=re.S)
    assert len(rest) < 1e6


def test_every_study_is_there_with_its_verdict_first(result, text):
    text = html.unescape(text)
    listed = text.split("<h2>Studies</h2>")[0]
    for i, s in enumerate(result.studies.values(), start=1):
        assert f'<a href="#study-{i}">{study_name(s)}</a>: {s.verdict}' in listed
        own = text.split(f'<details id="study-{i}"')[1].split("</details>")[0]
        assert s.verdict in own
        for note in s.conclusion["verdict"]["notes"]:
            assert note.lower() in own.lower()
    assert "3 of 4 studies name a mechanism" in listed


def test_ids_are_unique_and_every_figure_is_there(result, text):
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for i, s in enumerate(result.studies.values(), start=1):
        kinds = set(FIGURES) - {"targets"} if s.layer is not None else {"competence"}
        assert {k for k in FIGURES if f"figure-{k}-{i}" in ids} == kinds
    assert "figure-targets" in ids


def test_later_studies_are_folded_and_drawn_when_opened(text):
    parts = text.split("<details ")[1:]
    for i, part in enumerate(parts, start=1):
        own = part.split("</details>")[0]
        assert (" open>" in own.split("<summary>")[0]) == (i <= OPEN)
        drawn = re.sub(r"<template>.*?</template>", "", own, flags=re.S)
        assert ("Plotly.newPlot" in drawn) == (i <= OPEN)
    assert len(parts) == 4 and 'addEventListener("toggle"' in text


def test_a_refused_study_says_why_and_shows_no_more():
    text = html.unescape(text_of(world.run(world.study(task="boxes", accuracy=0.1))))
    assert "there is no binding to explain" in text
    assert "Sweep not measured: no layers were swept." in text
    assert "Controls</h3>" not in text and "The mixture</h3>" not in text
    assert "Targets first" not in text


def test_tables_hold_the_numbers(result, text):
    text = html.unescape(text)
    s = result.study()
    found = s.conclusion
    own = text.split('<details id="study-1"')[1].split("</details>")[0]
    table = own.split(">Controls</h3>")[1].split("<table>")[1].split("</table>")[0]
    assert table.count("<tr>") == 1 + len(found["controls"])
    for row in found["mixture"]["variants"]:
        assert re.search(rf'<td>{row["variant"]}</td><td class="n">{row["jss"]:.2f}</td>', own)
    matched = found["mixture"]["ceiling"]["matched"]
    assert own.count(f"{matched[0]:.2f} (") >= len(found["mixture"]["variants"])
    assert found["mixture"]["interaction"]["reason"] in own
    for finding in found["findings"]:
        assert finding["reason"] in own
    for kernel in ("peak", "density", "discrete"):
        assert f"<td>{kernel}</td>" in own
    tested = text.split("Targets first")[1].split("<table>")[1].split("</table>")[0]
    assert tested.count("<tr>") == 1 + len(result.hypotheses)


def test_settings_provenance_and_command_are_there(result):
    command = {"command": "mnemoscope bind toy"}
    made = replace(with_conclusion(result), settings=result.settings | command)
    text = text_of(made)
    assert "<h2>Settings</h2>" in text and "<h2>Provenance</h2>" in text
    assert "<pre>mnemoscope bind toy</pre>" in text


def test_at_four_groups_pointers_stand_beside_the_recipients_own_group():
    made = world.run(world.study(n=4, cases=12))
    assert made.study().conclusion["findings"]
    assert "Pointers not measured" not in text_of(made)


@pytest.mark.parametrize("part", ["controls", "findings", "mixture", "heads", "classics"])
def test_a_part_that_is_absent_leaves_its_section_out(result, part):
    text = text_of(with_conclusion(result, **{part: None}))
    titles = {"controls": "Controls", "findings": "Pointers beside", "mixture": "The mixture"}
    for name, title in titles.items():
        assert (f"<h3>{title}" in text) == (name != part)
    assert result.study().verdict in html.unescape(text)


def test_parts_with_a_reason_say_it(result):
    s = result.study()
    gone = {k: {"reason": f"no {k} here"} for k in s.conclusion["mixture"]}
    gone |= {k: s.conclusion["mixture"][k] for k in ("fit", "jss", "kernel")}
    text = text_of(with_conclusion(result, mixture=gone))
    for part in ("variants", "ceiling", "interaction", "case_level", "behaviour"):
        assert f"not measured: no {part} here" in text
    unfitted = text_of(with_conclusion(result, mixture={"reason": "P = L in every cell"}))
    assert "No mixture was fitted: P = L in every cell." in unfitted
    assert "<h3>The mixture" not in unfitted


def test_keys_that_the_page_does_not_know_are_no_matter(result):
    text = text_of(with_conclusion(result, elsewhere={"writers": []}, otherwise={"x": 1}))
    assert "<h3>Controls" in text


def test_text_from_outside_is_escaped():
    bad = world.BAD + "</template>"
    made = world.run(world.study(task=bad, cases=12), command=bad)
    text = text_of(replace(made, provenance=replace(made.provenance, model=bad)))
    assert bad not in text and world.BAD not in text


def test_the_answer_is_the_verdict_of_a_single_study(result):
    alone = with_conclusion(result)
    assert answer(alone).endswith(result.study().verdict)
    named = [n for s in result.studies.values() for n in s.conclusion["verdict"]["named"]]
    assert f"reflexive in {named.count('reflexive')}" in answer(result)


def test_the_overview_counts_again(result):
    for s, row in zip(result.studies.values(), overview(result), strict=True):
        assert row[0] == s.task and row[2] == str(s.n)
        if s.layer is None:
            assert row[4:] == ["–"] * 5 + ["none"]
            continue
        labels = s.records.of("main").rows["label"].tolist()
        shares = [f"{labels.count(k) / len(labels):.2f}" for k in world.POINTERS]
        mixture = s.conclusion["mixture"]
        assert row[5:8] == shares
        assert row[8] == f"{mixture['jss']:.2f} / {mixture['ceiling']['matched'][0]:.2f}"


def test_finish_saves_writes_and_prints(result, tmp_path, capsys):
    finish(result, tmp_path / "run", Lines(quiet=False), as_json=False)
    said = capsys.readouterr().out
    for s in result.studies.values():
        assert f"{study_name(s)}: {s.verdict}" in said
    assert "causal attention" not in said and "target first, reflexive above lexical" in said
    assert "note: one layer later" in said and "page.html" in said
    assert (tmp_path / "run" / "page.html").stat().st_size > 10**6
    again = BindingResult.load(tmp_path / "run")
    assert [s.verdict for s in again.studies.values()] == [
        s.verdict for s in result.studies.values()
    ]


def test_json_is_one_plain_object(result, tmp_path, capsys):
    finish(result, tmp_path / "run", Lines(quiet=True), as_json=True)
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [row["study"] for row in said["studies"]] == list(result.studies)
    assert said["studies"][3]["layer"] is None and said["studies"][3]["ceiling"] is None
    assert said["studies"][0]["named"] == result.study().conclusion["verdict"]["named"]
    assert said["hypotheses"] == result.hypotheses
    assert said["markdown"] == markdown(result)
    assert summary(result, tmp_path)["model"] == "toy"


def test_markdown_is_a_table_that_says_what_it_is_from(result):
    made = replace(result, settings=result.settings | {"command": "bind toy", "machine": "x86"})
    lines = markdown(made).splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 2 + len(result.studies)
    assert "`bind toy`" in lines[-1] and "x86" in lines[-1] and "2026-11-24" in lines[-1]
    assert "``" not in markdown(result)
