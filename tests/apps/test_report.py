"""The joined report: all kinds in one offline page and in Markdown, what joins them, refusals."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs
from run_folders import fixture, run_folders
from typer.testing import CliRunner

from apps import html_parts as h
from apps.cli import app
from apps.joined_report import report
from apps.result_kinds import KINDS, open_run
from circuits.scan_result import ScanResult
from circuits.validation_result import ValidationResult
from interp.errors import ResultError

ROOT = Path(__file__).parents[2]
RUN = CliRunner()
BAD = "<script>alert(1)</script>"
LIGHT = [name for name in KINDS if name not in ("binding", "validation")]
"""Kinds that are drawn in little time."""


def typed(*words):
    return RUN.invoke(app, ["report", *map(str, words)])


def soup_of(path):
    """The page without plotly.js."""
    text = path.read_text("utf-8")
    assert text.count(get_plotlyjs()) == 1
    return BeautifulSoup(text.replace(get_plotlyjs(), ""), "html.parser")


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """A report of a run of every kind, with Markdown; the scan twice, from two folders."""
    base = tmp_path_factory.mktemp("report")
    folders = [*run_folders().values()]
    folders.append(shutil.copytree(run_folders()["scan"], base / "scan-again"))
    told = report(folders, base / "report.html", markdown=True)
    return told, soup_of(told.page)


# -- the page ---------------------------------------------------------------------------------


def test_every_run_is_asked_and_answered_first_and_shown_whole_below(joined):
    told, soup = joined
    text = " ".join(soup.text.split())
    for run in told.runs:
        for words in (run.title, run.kind.asked(run.result), run.kind.answer(run.result)):
            assert " ".join(words.split()) in text
    sections = soup.find_all("section", class_="run")
    assert len(sections) == len(told.runs) == len(KINDS) + 1
    for run, section in zip(told.runs, sections, strict=True):
        if run.kind.name not in LIGHT:
            continue
        alone = BeautifulSoup(h.document("", run.kind.body(run.result)), "html.parser")
        for tag in ("figure", "table", "pre", "details"):
            assert len(section.find_all(tag)) == len(alone.find_all(tag)), run.title
        shown = [cell.text for cell in section.find_all("td")]
        assert shown == [cell.text for cell in alone.find_all("td")]


def test_names_are_unique_and_every_link_leads_somewhere(joined):
    _, soup = joined
    names = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(names) == len(set(names))
    links = [tag["href"] for tag in soup.find_all("a")]
    assert len(links) > 3 * len(KINDS)
    assert {link.removeprefix("#") for link in links} <= set(names)
    assert all(link.startswith("#") for link in links)
    drawn = re.findall(r'Plotly\.newPlot\(\s*"([^"]+)"', str(soup))
    assert sorted(drawn) == sorted(n for n in names if "-figure-" in n)


def test_headings_go_down_a_level_at_a_time(joined):
    _, soup = joined
    levels = [int(tag.name[1]) for tag in soup.find_all(re.compile("^h[1-6]$"))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))


def test_the_page_opens_offline(joined):
    _, soup = joined
    assert not soup.find_all(["link", "iframe", "img"]) and not soup.find_all(src=True)
    assert not re.search(r"@import|url\(", str(soup))


def test_folded_studies_are_kept_apart_and_printed_open(joined):
    _, soup = joined
    folded = [d for d in soup.find_all("details") if not d.has_attr("open")]
    assert folded and all(d.find("template") for d in folded)
    assert str(soup).count('addEventListener("beforeprint"') == 1


def test_text_from_outside_is_escaped(tmp_path):
    scan = fixture("figures").scan_result(tokens=("a|b", BAD, "*b*", BAD))
    made = replace(scan.provenance, model=f"toy{BAD}|`x`")
    bad = replace(scan, provenance=made, notes=(BAD, "a *bold* | pipe"),
                  settings=scan.settings | {"command": f"mnemoscope scan {BAD} ``` |"})  # fmt: skip
    folder = bad.save(tmp_path / "run <script> *x*")
    told = report([folder], tmp_path / "report.html", title=BAD, markdown=True)
    assert BAD not in told.page.read_text("utf-8").replace(get_plotlyjs(), "")
    page = rendered(told)
    assert not page.find_all(["script", "strong", "code"])[1:]  # the command alone is code
    assert {tag.text for tag in page.find_all("em")} == {"Figure:"}
    assert page.find("h1").text == BAD
    assert page.find("pre").text.strip() == f"mnemoscope scan {BAD} ``` |"
    assert "a *bold* | pipe" in page.text.replace("A *bold*", "a *bold*")


def test_results_in_memory_are_joined_too(tmp_path):
    scan = fixture("figures").scan_result()
    told = report([scan], tmp_path / "r.html")
    assert told.runs[0].folder is None and "run folder" not in soup_of(told.page).text
    assert told.title == "Report on toy"


def test_a_scan_that_was_never_answered_says_so(tmp_path):
    scan = fixture("figures").scan_result(passed=[False] * 16)
    told = report([scan, run_folders()["loss-groups"]], tmp_path / "r.html")
    soup = soup_of(told.page)
    assert "answered none of 16 questions" in soup.find("p", class_="answer").text
    assert not soup.find(id="run-1-figure-map") and soup.find(id="run-2-figure-shares")


# -- Markdown ---------------------------------------------------------------------------------


def rendered(told):
    """The Markdown as a page, by a renderer that is not ours."""
    text = told.markdown.read_text("utf-8")
    made = MarkdownIt("commonmark").enable("table").render(text)
    return BeautifulSoup(made, "html.parser")


def plain(cells):
    return [" ".join(cell.text.split()) for cell in cells]


def test_markdown_has_the_same_words_tables_and_commands(joined):
    told, soup = joined
    page = rendered(told)
    assert len(page.find_all("table")) == len(soup.find_all("table")) > 40
    for mine, theirs in zip(page.find_all("table"), soup.find_all("table"), strict=True):
        assert plain(mine.find_all(["th", "td"])) == plain(theirs.find_all(["th", "td"]))
    for tag in ("h1", "h2", "h3", "h4", "pre"):
        assert plain(page.find_all(tag)) == plain(soup.find_all(tag))
    quoted = plain(page.find_all("blockquote"))
    assert quoted == plain(soup.find_all("p", class_=["answer", "note"]))


def test_markdown_has_captions_in_the_place_of_figures(joined):
    told, soup = joined
    text = told.markdown.read_text("utf-8")
    links = re.findall(r"\*Figure:\* .*\(\[see it\]\(report\.html#([^)]+)\)\)", text)
    names = {tag["id"] for tag in soup.find_all(id=True)}
    assert len(links) == len(soup.find_all("figure")) and set(links) <= names
    for leak in ("Plotly", "<script", "<style", "<div", "<template", "plotly", "addEventListener"):
        assert leak not in text
    inner = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert inner <= set(re.findall(r'<a id="([^"]+)">', text))


# -- what runs say of each other --------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A scan and a validation of the same weights, with some heads in common."""
    base = tmp_path_factory.mktemp("pair")
    scan, tested = fixture("figures").scan_result(), fixture("validation_figures").validation()
    best = [str(head) for head in scan.top()]
    heads = [*best[:2], "L0H0" if "L0H0" not in best else "L0H2"]
    scan, tested = (
        replace(r, provenance=replace(r.provenance, model="toy", weight_hash="a" * 64))
        for r in (scan, tested)
    )
    tested = replace(tested, settings=tested.settings | {"heads": heads})
    return scan.save(base / "scan"), tested.save(base / "tested"), best, heads


def test_a_validation_says_how_many_of_the_scans_heads_it_tested(pair, tmp_path):
    scan, tested, best, heads = pair
    told = report([scan, tested], tmp_path / "r.html")
    (words,) = told.findings
    assert "the 5 best heads of run 1 (scan of heads), run 2 (validation of heads) takes up 2" in (
        words
    )
    assert f"left out: {', '.join(best[2:])}" in words and f"heads of its own: {heads[2]}" in words
    result = ValidationResult.load(tested)
    assert {f.verdict for f in result.findings} == {"supported"}
    away = [f.effect.ablation for f in result.findings if f.effect.direction != "denoising"]
    assert f"necessary: supported ({', '.join(away)}); sufficient: supported (denoise)" in words
    assert not told.cautions and words in soup_of(told.page).text


def with_provenance(folder, to, kind=ScanResult, **changes):
    result = kind.load(folder)
    return replace(result, provenance=replace(result.provenance, **changes)).save(to)


def test_other_weights_are_not_joined_and_warned_of(pair, tmp_path):
    scan, tested, *_ = pair
    other = with_provenance(tested, tmp_path / "b", ValidationResult, weight_hash="b" * 64)
    told = report([scan, other], tmp_path / "r.html")
    assert not told.findings
    assert "different weights" in told.cautions[0]
    assert f"{'a' * 12} (run 1)" in told.cautions[0] and f"{'b' * 12} (run 2)" in told.cautions[0]
    assert "the name toy stands for different weights" in told.cautions[1]
    assert h.sentence(told.cautions[0]) in soup_of(told.page).text


def test_other_precision_versions_and_unknown_weights_are_warned_of(pair, tmp_path):
    scan, *_ = pair
    other = with_provenance(scan, tmp_path / "b", dtype="bfloat16", weight_hash=None,
                            versions={"torch": "9.9"})  # fmt: skip
    told = " ".join(report([scan, other], tmp_path / "r.html").cautions)
    assert "float32 (run 1), bfloat16 (run 2)" in told
    assert "torch 9.9 (run 2)" in told
    assert "nothing identifies the weights of run 2" in told
    assert not report([scan], tmp_path / "r.html").cautions


def test_two_scans_are_compared_head_by_head(pair, tmp_path):
    scan, _, best, _ = pair
    first = ScanResult.load(scan)
    values = dict(first.values)
    values["copy"] = values["copy"][:, ::-1].copy()
    second = replace(first, values=values)
    told = report([scan, second.save(tmp_path / "b")], tmp_path / "r.html")
    (words,) = told.findings
    x, y = (r.mean("copy").reshape(-1) for r in (first, second))
    good = ~np.isnan(x) & ~np.isnan(y)
    assert f"correlate at {np.corrcoef(x[good], y[good])[0, 1]:.2f} (Pearson" in words
    shared = set(best) & {str(head) for head in second.top()}
    assert f"share {len(shared)} of their 5 best heads" in words


def test_scans_of_other_shapes_are_not_compared(pair, tmp_path):
    scan, *_ = pair
    other = fixture("figures").scan_result(layers=3).save(tmp_path / "b")
    (words,) = report([scan, other], tmp_path / "r.html").findings
    assert "cannot be compared head by head" in words and "4 x 6 heads" in words


def test_planted_models_are_not_held_against_the_users(pair, tmp_path):
    scan, *_ = pair
    told = report([scan, run_folders()["calibration"]], tmp_path / "r.html")
    assert not any("weights" in words for words in told.cautions)


# -- the command, and refusals ----------------------------------------------------------------


def test_the_command_prints_answers_or_one_object(pair, tmp_path):
    scan, patched = pair[0], run_folders()["patch"]
    page = tmp_path / "new" / "both.html"
    done = typed(scan, patched, "--output", page, "--title", "Both")
    assert done.exit_code == 0, done.output
    assert f"page: {page}" in done.output and not page.with_suffix(".md").exists()
    done = typed(scan, patched, "--output", page, "--markdown", "--json")
    told = json.loads(done.stdout)
    assert told["page"] == str(page) and told["markdown"] == str(page.with_suffix(".md"))
    assert [run["kind"] for run in told["runs"]] == ["scan", "patch"]
    for run, folder in zip(told["runs"], (scan, patched), strict=True):
        kind, result = open_run(folder)
        assert run["folder"] == str(folder) and run["answer"] == kind.answer(result)
    assert told["findings"] == [] and "different weights" in told["cautions"][0]
    assert soup_of(page).find("h1").text == told["title"]


def refused(*args, **options):
    with pytest.raises(ResultError) as error:
        report(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_only_a_report_is_written_over(pair, tmp_path):
    scan, *_ = pair
    for name, taken in (("r.html", "r.html"), ("s.html", "s.md")):
        (tmp_path / taken).write_text("<html>mine</html>")
        said = refused([scan], tmp_path / name, markdown=True)
        assert f"{taken} exists and is no report" in said and "--force" in said
        assert (tmp_path / taken).read_text() == "<html>mine</html>"
    report([scan], tmp_path / "s.html")  # its Markdown is not asked for, so not in the way
    report([scan], tmp_path / "r.html", markdown=True, force=True)
    report([scan], tmp_path / "r.html", markdown=True, title="Again")
    assert soup_of(tmp_path / "r.html").find("h1").text == "Again"


def test_a_page_of_a_run_is_not_written_over(pair, tmp_path):
    scan, *_ = pair
    kind, result = open_run(scan)
    h.write_whole(tmp_path / "page.html", h.document("", kind.body(result)))
    assert "no report" in refused([scan], tmp_path / "page.html")


def test_bad_places_are_refused(pair, tmp_path):
    scan, *_ = pair
    (tmp_path / "folder.html").mkdir()
    assert "is a folder" in refused([scan], tmp_path / "folder.html")
    assert "does not end in .html" in refused([scan], tmp_path / "report.pdf")
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused([scan], tmp_path / "file" / "report.html")


def test_bad_runs_are_refused_and_nothing_is_written(pair, tmp_path):
    scan, *_ = pair
    page = tmp_path / "r.html"
    assert "no run was named" in refused([], page)
    again = scan.parent / "tested" / ".." / "scan"
    assert "named twice" in refused([scan, again], page)
    assert "no such folder" in refused([scan, tmp_path / "nowhere"], page)
    broken = shutil.copytree(scan, tmp_path / "broken")
    (broken / "tensors.safetensors").write_bytes(b"")
    assert "damaged" in refused([scan, broken], page)
    done = typed(tmp_path / "nowhere", "--output", page)
    assert done.exit_code == 1 and isinstance(done.exception, ResultError)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]
