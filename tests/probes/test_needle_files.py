"""Needle files: our layout, the published one, and what is refused."""

import json

import pytest

from interp.errors import PromptError
from probes.needle import Needle, load_needles, sentence_with


def row(**changes):
    full = {"id": "a", "kind": "fact", "language": "en", "sentence": "It is {value}."}
    return {**full, "question": "What?", "values": ["x y", "z w"], **changes}


@pytest.mark.parametrize("array", [False, True])
def test_a_users_file_in_our_layout(tmp_path, array):
    rows = [row(), row(id="b")]
    text = json.dumps(rows) if array else "\n\n".join(map(json.dumps, rows))
    path = tmp_path / "mine.json"
    path.write_text(text, "utf-8")
    made = load_needles(path)
    assert [n.id for n in made] == ["a", "b"] and made[0].values == ("x y", "z w")


def test_the_published_layout(tmp_path):
    path = tmp_path / "published.jsonl"
    first = {"needle": "\nWe left because of rain.\n", "question": "Why?", "id": 1}
    second = {"needle": "Best is tea and toast at noon.", "question": "What is best?"}
    rows = [
        first | {"real_needle": "Because of rain"},
        second | {"real_needle": "tea and toast", "language": "en"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    one, two = load_needles(path)
    assert one == Needle("1", "published", "en", "We left {value}.", "Why?", ("because of rain",))
    assert two.id == "line-2" and sentence_with(two, two.values[0]) == second["needle"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({k: v for k, v in row().items() if k != "question"}, "field 'question' is missing"),
        (row(sentence="It is."), "'sentence' must hold {value} exactly once"),
        (row(values=[]), "'values' must be a list"),
        (row(values=["x", "x"]), "lists a value twice"),
        (row(kind=" "), "field 'kind' must be a text"),
        (row(id="ok"), "id 'ok' occurs twice"),
        ({"needle": "A b c.", "question": "?", "real_needle": "d"}, "'real_needle' must be a part"),
        ({"needle": "b b", "question": "?", "real_needle": "b"}, "occur in it once"),
        ({"needle": "b b", "question": "?"}, "field 'real_needle' is missing"),
        (row(question="Is it X y?"), "gives the answer 'x y' away"),
        ({"needle": "A b c.", "question": "Is b it?", "real_needle": "b"}, "'b' away"),
        (["list"], "expected a JSON object, got list"),
    ],
)
def test_bad_rows_are_named_by_file_line_and_field(tmp_path, bad, message):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join([json.dumps(row(id="ok")), json.dumps(bad)]), "utf-8")
    with pytest.raises(PromptError) as caught:
        load_needles(path)
    assert "mine.jsonl, line 2" in str(caught.value) and message in str(caught.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(PromptError, match="cannot read"):
        load_needles(tmp_path / "none.jsonl")
    for name, content, message in [
        ("e.jsonl", b"\n", "holds no needle"),
        ("j.jsonl", b"{oops", "line 1: not JSON"),
        ("u.jsonl", b"\xff\xfe", "not UTF-8"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PromptError, match=message):
            load_needles(tmp_path / name)
