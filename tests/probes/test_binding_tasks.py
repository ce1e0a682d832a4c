"""Tasks as data: the ten families, and every way in which a task file can be wrong."""

import json

import pytest
import yaml

from interp.errors import PromptError, UnknownNameError
from probes.binding_tasks import pieces, read_task, task_names

TASK = {
    "name": "gifts",
    "roles": ["giver", "gift"],
    "clause": "{giver} brought the {gift}",
    "questions": [
        {"target": "gift", "ask": "What did {giver} bring?", "complete": "The gift of {giver} was"}
    ],
    "pools": {"giver": ["Ann", "Bob"], "gift": ["cake", "book"]},
}


def test_there_are_ten_families():
    assert len(task_names()) == len(set(task_names())) == 10


@pytest.mark.parametrize("name", task_names())
def test_a_family_asks_for_every_role_and_has_words_for_twenty_groups(name):
    task = read_task(name)
    assert task.targets == task.roles
    assert len(task.roles) == (2 if name == "boxes" else 3)
    assert min(len(words) for words in task.pools.values()) >= 23
    for role in task.roles:
        question = task.question(role)
        assert set(question.asked) == set(task.roles) - {role}


@pytest.mark.parametrize("name", task_names())
def test_no_answer_can_be_copied_from_behind_the_same_words(name):
    """An opening that repeats the clause would be answered by induction, without any binding."""
    task = read_task(name)
    for question in task.questions:
        before = task.clause.split("{" + question.target + "}")[0].split()
        opening = question.complete.split()
        assert opening[-2:] != before[-2:], question.label


def test_a_question_is_found_by_target_and_by_label():
    task = read_task("music_performance")
    assert task.question("genre").asked == ("musician", "instrument")
    assert task.question("genre|musician").asked == ("musician",)
    with pytest.raises(UnknownNameError, match="did you mean genre"):
        task.question("gener")


def test_literal_braces_are_text():
    assert pieces('{{"a": {b}}}') == [("{", None), ('"a": ', None), ("b", "b"), ("}", None)]
    with pytest.raises(PromptError, match="double a brace"):
        pieces("a } b")


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_task_of_ones_own_comes_from_a_file(tmp_path, suffix):
    path = tmp_path / f"gifts{suffix}"
    path.write_text(json.dumps(TASK) if suffix == ".json" else yaml.safe_dump(TASK), "utf-8")
    task = read_task(path)
    assert task.roles == ("giver", "gift") and task.joiner == ", " and task.targets == ("gift",)


def changed(**fields):
    return {k: v for k, v in (TASK | fields).items() if v is not None}


BAD = {
    "no pools": (changed(pools=None), "lacks pools"),
    "unknown field": (changed(pool={}), "unknown pool"),
    "a role too many": (changed(roles=["a", "b", "c", "d"]), "2 or 3 different roles"),
    "template without a role": (changed(clause="{giver} came"), "clause must hold each role once"),
    "roles out of order": (changed(clause="the {gift} of {giver}"), "in order"),
    "target unknown": (
        changed(questions=[{"target": "size", "ask": "{giver}", "complete": "{giver}"}]),
        "no role of giver, gift",
    ),
    "asks for itself": (
        changed(questions=[{"target": "gift", "ask": "{gift}?", "complete": "{gift}"}]),
        "names other roles only",
    ),
    "asks nothing": (
        changed(questions=[{"target": "gift", "ask": "What?", "complete": "It is"}]),
        "must name the same roles",
    ),
    "a question is no mapping": (changed(questions=["What?"]), "target, ask and complete"),
    "pools of other roles": (changed(pools={"giver": ["Ann"]}), "name the roles giver, gift"),
    "a word twice": (
        changed(pools={"giver": ["Ann", "Bob"], "gift": ["ann", "cake"]}),
        "every word belongs to one role",
    ),
    "a word with spaces": (
        changed(pools={"giver": ["Ann ", "Bob"], "gift": ["pan", "cake"]}),
        "spaces around",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_task_is_refused_in_one_line(case):
    row, told = BAD[case]
    with pytest.raises(PromptError, match=told) as error:
        read_task(row)
    assert "\n" not in str(error.value)


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean boxes"):
        read_task("boxs")
    with pytest.raises(PromptError, match="cannot be read"):
        read_task(tmp_path / "none.yaml")
    broken = tmp_path / "broken.json"
    broken.write_text("{", "utf-8")
    with pytest.raises(PromptError, match="no YAML or JSON"):
        read_task(broken)
    broken.write_text("[1]", "utf-8")
    with pytest.raises(PromptError, match="holds no mapping"):
        read_task(broken)
