"""ROUGE-1 recall against counts by hand; containment against word lists."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.rouge import contains, published_rouge1_recall, rouge1_recall, words

WORDS = st.sampled_from(["red", "fox", "ran", "by", "sea", "to", "old", "mill"])
PLAIN = st.lists(WORDS, max_size=12)


@settings(deadline=None)
@given(PLAIN, PLAIN)
def test_recall_is_the_clipped_share_of_reference_words(reference, candidate):
    shared = sum((Counter(reference) & Counter(candidate)).values())
    expected = shared / len(reference) if reference else 0.0
    found = rouge1_recall(" ".join(reference), " ".join(candidate), stem=False)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reference", "candidate", "ours", "published"),
    [
        ("bottle green", "It is Green, like bottles.", 1.0, 1.0),
        ("бумажных самолётов", "Он боится бумажных змеев.", 0.5, 0.0),
        ("青崖雪", "它叫青崖水", 2 / 3, 0.0),
        ("cuillères tordues", "des cuillères", 0.5, 2 / 3),  # the package cuts at the accent
        ("", "anything", 0.0, 0.0),
        ("!?", "!?", 0.0, 0.0),
        ("58213", "", 0.0, 0.0),
    ],
)
def test_every_script_counts_in_ours_and_only_ascii_in_the_published(
    reference, candidate, ours, published
):
    assert rouge1_recall(reference, candidate) == pytest.approx(ours)
    assert published_rouge1_recall(reference, candidate) == pytest.approx(published)


def test_stemming_is_a_choice():
    assert rouge1_recall("walking boots", "he walked in a boot") == 1.0
    assert rouge1_recall("walking boots", "he walked in a boot", stem=False) == 0.0


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("58213", "The code is 58213.", True),
        ("58213", "It is 58,213 exactly", True),
        ("58213", "158213", False),
        ("58213", "582130", False),
        ("5", "3.5 metres", False),
        ("61.4", "weighs 61.4 grams", True),
        ("61.4", "weighs 161.4 grams", False),
        ("Pale Violet", "a PALE,  violet light", True),
        ("pale violet", "violet pale", False),
        ("pale violet", "pale violets", False),
        ("青崖雪", "叫做“青崖雪”。", True),
        ("青崖雪", "青崖", False),
        ("भुना नारियल", "वह भुना नारियल मिलाती है", True),
        ("ｆｕｌｌ", "full width", True),
        ("MAX_TICKS", "max_ticks = 4", True),
        ("...", "...", False),
    ],
)
def test_containment_is_of_whole_words(answer, text, expected):
    assert contains(answer, text) is expected


def test_words_of_several_scripts():
    assert words("Foo-bar 3.5. 青崖 हिन्दी x") == ["foo", "bar", "3.5", "青", "崖", "हिन्दी", "x"]


@settings(deadline=None)
@given(PLAIN.filter(bool), PLAIN, PLAIN)
def test_an_answer_is_contained_wherever_it_stands(answer, before, after):
    text = " ".join([*before, *answer, *after])
    assert contains(" ".join(answer), f"“{text}!”")
