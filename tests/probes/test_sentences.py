"""Sentence ends, by hand and as a property."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.sentences import sentences


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("aB.!?\"' \n\t…。）1Mr,é"), max_size=60) | st.text())
def test_pieces_join_to_the_text(text):
    assert "".join(sentences(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One ran. Two sat!  Three?", ["One ran.", " Two sat!", "  Three?"]),
        ("'Oh dear!' said Al. 'No.' Go on.", ["'Oh dear!' said Al.", " 'No.'", " Go on."]),
        ("Mr. Fox met Dr. J. R. Hale. He ran.", ["Mr. Fox met Dr. J. R. Hale.", " He ran."]),
        ("See e.g. Bath, in the U.S. Army.", ["See e.g. Bath, in the U.S. Army."]),
        ("See p. 5 and vol. 2. It ends.", ["See p. 5 and vol. 2.", " It ends."]),
        ("He said no. But why?", ["He said no.", " But why?"]),
        ("a head\n\nThen text\n", ["a head", "\n\nThen text\n"]),
        ("他来了。她走了。", ["他来了。", "她走了。"]),
        ("В лесу. Там ель.", ["В лесу.", " Там ель."]),
        ("", []),
        ("  \n", ["  \n"]),
    ],
)
def test_where_sentences_end(text, expected):
    assert sentences(text) == expected
