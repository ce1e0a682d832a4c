"""How a text is divided: no document twice, blocks alike in size, training apart."""

import numpy as np
import pytest
from texts import space_tokenizer, texts

from circuits.graph_plan import TRAINING, UNUSED, GraphSettings, check_settings, divide
from interp.errors import PromptError

SETTINGS = {"length": 24, "skip_first": 2, "blocks": 5}


def divided(text, **options):
    tokenizer = space_tokenizer()
    settings = GraphSettings(**(SETTINGS | options))
    return divide(tokenizer, text, settings, n_vocab=len(tokenizer))


def test_positions_are_those_behind_the_first_of_each_window():
    text = texts(20)
    found = divided(text, train_tokens=300)
    tokenizer = space_tokenizer()
    for words, n in zip(text, found.n_positions, strict=True):
        ids = tokenizer(words, add_special_tokens=False).input_ids
        windows = [ids[i : i + 24] for i in range(0, len(ids), 24)]
        assert n == sum(max(0, len(w) - 2) for w in windows)
    assert found.counts.n_documents == 20


def test_training_documents_are_apart_and_spread_over_the_text():
    found = divided(texts(200), train_tokens=2000)
    training = np.flatnonzero(found.roles == TRAINING)
    assert found.size(TRAINING) == pytest.approx(2000, rel=0.2)
    assert found.size(TRAINING) + found.size() == found.n_positions.sum()
    assert np.diff(training).max() <= 2 * np.diff(training).min() + 1


def test_blocks_are_stretches_of_nearly_equal_size():
    found = divided(texts(200), features=("x",))
    used = found.roles[found.roles >= 0]
    assert (np.diff(used) >= 0).all() and found.n_blocks == 5
    sizes = [found.size(b) for b in range(5)]
    assert max(sizes) - min(sizes) < 2 * found.n_positions.max() + 1
    assert not (found.roles == TRAINING).any()


def test_the_graph_takes_no_more_than_was_asked():
    found = divided(texts(200), features=("x",), tokens=1500)
    assert 1500 <= found.size() < 1500 + found.n_positions.max()
    assert (found.roles == UNUSED).any()


def test_texts_too_short_for_a_position_make_no_block_of_their_own():
    found = divided([*texts(40), "the", "of"], features=("x",))
    assert found.n_blocks == 5 and all(found.size(b) > 0 for b in range(5))


def test_other_text_has_another_digest():
    a, b = (divided(texts(30, seed=s), features=("x",)).digest for s in (0, 1))
    assert a != b and a == divided(texts(30), features=("x",)).digest


@pytest.mark.parametrize(
    ("options", "words"),
    [({"blocks": 1}, "blocks must be 2"), ({"draws": 3}, "draws must be 20"),
     ({"length": 3}, "length must be"), ({"cut": 0.0}, "between 0 and 1")],
)  # fmt: skip
def test_settings_that_cannot_be_followed_are_refused(options, words):
    with pytest.raises(PromptError, match=words):
        check_settings(GraphSettings(**options))
