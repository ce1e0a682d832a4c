import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from apps.page import answer, write_page
from interp.errors import ResultError

_spec = importlib.util.spec_from_file_location(
    "figures_fixture", Path(__file__).with_name("test_figures.py")
)
_fixture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixture)
scan_result = _fixture.scan_result
BAD = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def bad():
    """A result with markup wherever a model or a user can put text."""
    result = scan_result(tokens=("a", BAD, "b", BAD))
    result = replace(result, provenance=replace(result.provenance, model=f"toy{BAD}"))
    result.rows["trial"] = BAD
    command = f"mnemoscope scan {BAD}"
    return replace(result, settings=result.settings | {"command": command}, notes=(BAD,))


def test_the_page_is_one_offline_file(bad, tmp_path):
    path = write_page(bad, tmp_path / "new" / "page.html")
    text = path.read_text("utf-8")
    assert path.stat().st_size < 8e6
    assert text.count(get_plotlyjs()) == 1
    rest = text.replace(get_plotlyjs(), "")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(""", rest)
    assert re.findall(r"<(link|iframe|img|script[^>]*src)", rest) == []
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_text_from_outside_is_escaped(bad, tmp_path):
    text = write_page(bad, tmp_path / "page.html").read_text("utf-8")
    assert BAD not in text
    assert "mnemoscope scan &lt;script&gt;" in text


def test_the_answer_is_computed_from_the_result():
    result = scan_result()
    frame = result.to_frame()
    said = answer(result)
    above = int((frame["score"] > 0.1).sum())
    assert f"{above} of 18 heads ({100 * above / 18:.1f} %)" in said
    best = frame.iloc[0]
    assert f"{best['name']} at {best.score:.2f}" in said
    assert f"{best.low:.2f} to {best.high:.2f}" in said
    assert f"answered {result.trials['passed'].sum()} of 16 questions" in said
    assert f"{result.reliability().overlap:.1f} of their top 5" in said


def test_six_figures_and_the_tables(tmp_path):
    result = scan_result()
    text = write_page(result, tmp_path / "page.html").read_text("utf-8")
    for kind in ("map", "ranked", "grid", "agreement", "profile", "attention"):
        assert text.count(f'id="figure-{kind}"') == 1
    assert "query-focused score" in text
    assert "arXiv 2404.15574" in text
    assert "How to make this again" not in text


def test_a_result_in_which_nothing_was_answered(tmp_path):
    result = scan_result(passed=[False] * 16)
    text = write_page(result, tmp_path / "page.html").read_text("utf-8")
    assert "answered none of 16 questions" in text
    assert "I do not know" in text
    assert "plotly" not in text.lower()


def test_one_needle_and_no_rows_still_make_a_page(tmp_path):
    result = replace(scan_result(passed=[i == 1 for i in range(16)]), rows={})
    text = write_page(result, tmp_path / "page.html").read_text("utf-8")
    assert "No attention figure" in text
    assert "no interval" in text
    assert text.count(get_plotlyjs()) == 1


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(ResultError, match="cannot write"):
        write_page(scan_result(passed=[False] * 16), tmp_path / "page.html")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
