"""Every form of head list, beside what is refused; written files come back as they were."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.head_sets import check_heads, read_heads, write_heads
from circuits.scan_result import ScanResult
from interp.errors import ResultError, SiteError
from interp.sites import Head
from interp.spec import ModelSpec
from interp.store import Provenance

A, B, C = Head(5, 3), Head(7, 10), Head(0, 1)


def _file(folder, name, value):
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return path


# -- text and sequences -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["L5H3,L7H10,L0H1", "5.3 7.10 0.1", "5-3, 7-10; 0-1", "(5, 3), (7, 10) (0,1)", "5_3,7_10,0_1",
     "['5-3', \"L7H10\"]\n0.1"],
)  # fmt: skip
def test_text_in_every_form(text):
    found = read_heads(text)
    assert found.heads == (A, B, C)
    assert (found.kind, found.scores) == ("text", None) and text in found.source


@pytest.mark.parametrize(
    "heads", [[A, B, C], [(5, 3), "L7H10", "0.1"], np.array([[5, 3], [7, 10], [0, 1]])]
)
def test_sequences_of_heads_in_any_form(heads):
    assert read_heads(heads).heads == (A, B, C)
    assert read_heads(heads, top=2).heads == (A, B)


@pytest.mark.parametrize("text", ["L5X3", "5", "5,3", "heads.json", "", "  ", "x" * 5000])
def test_text_that_is_no_head_and_no_file_is_refused_with_the_forms(text):
    with pytest.raises(ResultError, match="no file is called so.*QRHead YAML.*L5H3,L7H1"):
        read_heads(text)


def test_the_word_that_is_no_head_is_named():
    with pytest.raises(ResultError, match="'L7X1' is no head"):
        read_heads("L5H3,L7X1")


@pytest.mark.parametrize("heads", [[5, 3], [(5, 3, 1)], [(5.5, 3)], [None], [(-1, 3)]])
def test_sequences_of_other_things_are_refused(heads):
    with pytest.raises(ResultError, match="is no head; write it as"):
        read_heads(heads)


def test_nothing_repeats_and_too_many_are_refused():
    with pytest.raises(ResultError, match="given as a list: no heads; expected"):
        read_heads([])
    with pytest.raises(ResultError, match="L5H3 more than once"):
        read_heads("5-3,7-10,L5H3")
    for top in (0, 3):
        with pytest.raises(ResultError, match=f"top {top} of 2 heads .*ask for 1 to 2"):
            read_heads("5-3,7-10", top=top)


# -- files ------------------------------------------------------------------------------------


def test_published_scores_are_ranked_by_their_mean(tmp_path):
    path = _file(tmp_path, "wu.json", {"0-0": [0.1, 0.2], "0-1": [0.9, 0.7], "2-0": [0.5]})
    found = read_heads(path)
    assert found.heads == (Head(0, 1), Head(2, 0), Head(0, 0))
    assert found.kind == "json" and found.scores.shape == (3, 2)
    assert found.scores[0, 1] == pytest.approx(0.8) and np.isnan(found.scores[1]).all()
    assert read_heads(str(path), top=1).heads == (Head(0, 1),)


@pytest.mark.parametrize(
    "value",
    [
        ["5-3", "L7H10", "0.1"],
        [[5, 3], [7, 10], [0, 1]],
        [["0-1", 0.1], ["5-3", 0.9], ["7-10", 0.4]],
        {"model": "m-1", "heads": ["5-3", "7-10", "0-1"]},
        {"n": 3, "set": {"best": [[5, 3], [7, 10], [0, 1]]}},
    ],
    ids=["names", "pairs", "scored pairs", "known key", "any key"],
)
def test_json_lists(tmp_path, value):
    found = read_heads(_file(tmp_path, "heads.json", value))
    assert found.heads == (A, B, C) and found.kind == "json"


def test_scored_pairs_keep_their_scores(tmp_path):
    found = read_heads(_file(tmp_path, "h.json", [["0-1", 0.1], ["1-0", 1]]))
    assert np.array_equal(found.scores, [[np.nan, 0.1], [1, np.nan]], equal_nan=True)


@pytest.mark.parametrize(
    "text",
    [
        '# top16\nattn_head_set: "5-3,7-10,0-1" # top\nmodel_base_class: "Llama-3.1-8B"\n',
        "attn_head_set: 5_3,7_10,0_1\n",
        "head_list:\n- 5.3\n- 7.10\n- 0.1\n",
        "- [5, 3]\n- [7, 10]\n- [0, 1]\n",
        "version: 3.1\nlr: 0.5\nsizes: [1.5, 2.5]\nmine: {best: '5-3 7-10 0-1'}\n",
        "5-3,7-10,0-1",
    ],
)
@pytest.mark.parametrize("name", ["h.yaml", "h.yml"])
def test_yaml_lists(tmp_path, text, name):
    """7.10 is head 10, which a YAML number would lose; settings are not taken for heads."""
    found = read_heads(_file(tmp_path, name, text))
    assert found.heads == (A, B, C) and found.kind == "yaml"


def test_yaml_that_lists_no_heads_says_what_it_found(tmp_path):
    with pytest.raises(ResultError, match="attn_head_set 'full_heads' lists no heads"):
        read_heads(_file(tmp_path, "full.yaml", 'attn_head_set: "full_heads"\n'))
    with pytest.raises(ResultError, match="lists no heads; expected"):
        read_heads(_file(tmp_path, "none.yaml", "version: 3.1\nname: x\n"))
    with pytest.raises(ResultError, match="cannot be read as YAML") as error:
        read_heads(_file(tmp_path, "bad.yaml", "a: [1\nb: {"))
    assert "\n" not in str(error.value)


def test_a_table_of_gates_is_expanded_to_the_query_heads_that_read_each(tmp_path):
    path = _file(tmp_path, "full_attention_heads.tsv", "1e-01\t9e-01\n\n5e-01 0\n")
    found = read_heads(path, n_groups=2)
    slow = np.array([[[0.1, 0.9], [0.5, 0]][layer][h // 2] for layer in range(2) for h in range(4)])
    assert np.array_equal(found.scores, slow.reshape(2, 4)) and found.kind == "tsv"
    assert found.heads[:3] == (Head(0, 2), Head(0, 3), Head(1, 0))
    assert read_heads(path, n_groups=2, n_heads=4).heads == found.heads
    alone = read_heads(path, n_heads=2, n_groups=4)  # a column a query head: nothing to expand
    assert alone.scores.shape == (2, 2)
    assert read_heads(path, n_groups=1).heads == alone.heads


def test_a_cut_through_ties_is_told(tmp_path):
    path = _file(tmp_path, "gates.tsv", "0.1 0.9\n0.9 0.2\n")
    assert "4 heads tie at the cut" in read_heads(path, n_groups=2, top=3).source
    assert "tie at" not in read_heads(path, n_groups=2, top=4).source


def test_tables_that_do_not_fit_are_refused(tmp_path):
    path = _file(tmp_path, "gates.tsv", "0.1 0.9\n0.5 0\n")
    with pytest.raises(ResultError, match="has 2 columns, one a key-value head; give n_groups"):
        read_heads(path)
    with pytest.raises(ResultError, match="do not make the model's 12 heads"):
        read_heads(path, n_groups=3, n_heads=12)
    for text in ("1 2\n3\n", "layer gate\n0 1\n", "", "nan 1\n"):
        with pytest.raises(ResultError, match="expected a table of gates"):
            read_heads(_file(tmp_path, "bad.tsv", text), n_groups=1)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    for name, value, message in (
        ("a.json", "{", "cannot be read as JSON"),
        ("b.json", {"a": 1}, "lists no heads"),
        ("c.json", [5, 3], "lists no heads"),
        ("d.json", [["5-3,7-10", 0.5]], "lists no heads"),
        ("d.json", {"5-3": ["x"]}, "expected {"),
        ("e.csv", "5-3", "is of no known kind"),
        ("f.txt", "hello", "lists no heads"),
    ):
        with pytest.raises(ResultError, match=message):
            read_heads(_file(tmp_path, name, value))
    with pytest.raises(ResultError, match="cannot be read"):
        read_heads(tmp_path / "absent.json")
    assert read_heads(_file(tmp_path, "g.txt", "5-3\n7-10\n")).heads == (A, B)


# -- scans ------------------------------------------------------------------------------------


@pytest.fixture
def scan_folder(tmp_path):
    record = Provenance(
        "toy", "made in a test", None, None, None, "0", "Toy", 3, 2, "float32", "cpu", "rows",
        {}, "2026-01-01T00:00:00+00:00", 1.0, None,
    )  # fmt: skip
    copy = np.array([[[0.1, 0.2], [np.nan, np.nan], [0.8, 0.0]]] * 4, dtype=np.float32)
    copy[3] = 5  # a trial that was not answered does not count
    trials = pd.DataFrame({"needle": list("aabb"), "passed": [True, True, True, False]})
    trials["forced"] = trials["exact"] = trials["passed"]
    trials["rouge"] = 1.0
    settings = {"top": 2, "threshold": 0.1, "seed": 0}
    return ScanResult(settings, record, trials, {"copy": copy}, {}).save(tmp_path / "run")


def test_a_scan_is_ranked_by_its_copy_score(scan_folder):
    for ref in (scan_folder, str(scan_folder)):
        found = read_heads(ref)
        assert found.heads == (Head(2, 0), Head(0, 1), Head(0, 0), Head(2, 1))
        assert found.kind == "scan" and "scan of toy" in found.source
    assert found.heads == tuple(ScanResult.load(scan_folder).top(4))
    again = read_heads(scan_folder / "heads.json")
    assert again.heads == found.heads
    assert np.allclose(again.scores, found.scores, equal_nan=True)


def test_a_folder_without_a_scan_is_refused(tmp_path):
    with pytest.raises(ResultError, match="no result"):
        read_heads(tmp_path)


# -- our file ---------------------------------------------------------------------------------


@given(st.permutations([A, B, C]), st.booleans())
def test_written_heads_come_back_in_their_order_with_their_scores(tmp_path_factory, heads, scored):
    scores = np.random.default_rng(0).random((8, 11)) if scored else None
    if scored:
        scores[1, 2] = np.nan
    path = tmp_path_factory.mktemp("out") / "deep" / "set.json"
    assert write_heads(path, heads, scores, model="toy") == path
    found = read_heads(path)
    assert found.heads == tuple(heads) and "for toy" in found.source
    assert np.array_equal(found.scores, scores, equal_nan=True) if scored else not found.scores
    assert [p.name for p in path.parent.iterdir()] == ["set.json"]  # nothing is left beside it


def test_the_file_is_as_documented(tmp_path):
    path = write_heads(tmp_path / "s.json", [C], np.array([[np.nan, 0.5]]), model="toy")
    assert json.loads(path.read_text()) == {
        "kind": "heads", "schema": 1, "model": "toy", "heads": ["L0H1"], "scores": [[None, 0.5]],
    }  # fmt: skip


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = write_heads(tmp_path / "s.json", [A], model="toy")
    with pytest.raises(ResultError, match="no heads"):
        write_heads(path, [], model="toy")
    with pytest.raises(ResultError, match="more than once"):
        write_heads(path, [A, A], model="toy")
    with pytest.raises(ResultError, match="cannot write"):
        write_heads(path / "below.json", [A], model="toy")
    assert read_heads(path).heads == (A,)


def test_another_schema_and_damaged_files_are_refused(tmp_path):
    good = {"kind": "heads", "schema": 1, "model": "m", "heads": ["L0H1"], "scores": None}
    for change, message in (
        ({"schema": 2}, "of schema 2, this version reads 1"),
        ({"heads": []}, "lists no heads"),
        ({"heads": None}, "lists no heads"),
        ({"scores": [[1], [1, 2]]}, "scores must be null or"),
        ({"scores": [[0.5]]}, "scores must be null or"),
    ):
        with pytest.raises(ResultError, match=message):
            read_heads(_file(tmp_path, "s.json", good | change))


# -- against a model --------------------------------------------------------------------------


def test_heads_are_checked_against_the_model():
    spec = ModelSpec("Toy", 8, 12, 4, 16, 192, 100, (0, 5, 7), (None,) * 8, None, False, None)
    check_heads([A, B, C], spec)
    with pytest.raises(SiteError, match="no head L9H0"):
        check_heads([A, Head(9, 0)], spec)
    with pytest.raises(SiteError, match="layer 1 has no attention"):
        check_heads([Head(1, 0)], spec)
    with pytest.raises(ResultError, match="L5H3 more than once"):
        check_heads([A, B, A], spec)
    with pytest.raises(ResultError, match="no heads"):
        check_heads([], spec)
