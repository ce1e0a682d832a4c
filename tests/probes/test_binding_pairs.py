"""Counterfactual designs: predictions by following words, coverage of cells, fillers, refusals."""

import numpy as np
import pytest

from interp.errors import PromptError, UnknownNameError
from probes.binding_pairs import DESIGNS, Sampler, apart, recipients
from probes.binding_tasks import read_task
from probes.filler import filler

TASK = read_task("music_performance")
N = 6


def sampler(target="genre", n=N, **options):
    return Sampler(TASK, TASK.question(target), n, **options)


def places(matrix):
    """Group of every word of a matrix."""
    return {word: g for g, row in enumerate(matrix) for word in row}


@pytest.mark.parametrize("target", TASK.roles)
@pytest.mark.parametrize("name", DESIGNS)
def test_predictions_are_where_the_words_stand(name, target):
    """Each mechanism's group, found again by looking every donor word up in the recipient."""
    one = sampler(target)
    k = TASK.roles.index(target)
    for index in range(5):
        entity_set = one.draw(index, [name], seed=1, repeats=2)
        where = places(entity_set.matrix)
        for donor in entity_set.donors:
            words = [w for row in donor.matrix for w in row]
            assert len(set(words)) == len(words)  # every donor question has one answer
            for p in donor.groups:
                row = donor.matrix[p]
                asked = {where.get(w) for i, w in enumerate(row) if i != k}
                assert asked == {donor.lexical[p]}
                assert where.get(row[k]) == donor.reflexive[p]


@pytest.mark.parametrize("n", [4, 5, 12])
def test_in_the_main_design_all_pointers_part(n):
    one = sampler(n=n)
    seen = set()
    for index in range(200 if n == 4 else 20):
        entity_set = one.draw(index, ["main"], seed=0)
        donor = entity_set.donors[0]
        for p in donor.groups:
            cell = (p, donor.lexical[p], donor.reflexive[p])
            assert len(set(cell)) == 3
            seen.add(cell)
            rng = np.random.default_rng(0)
            for i_n in recipients(entity_set, donor, p, rng, n=n):
                assert i_n not in cell
    if n == 4:
        assert len(seen) == 4 * 3 * 2  # every cell without a collision


def test_with_collisions_every_cell_can_be_reached():
    one = sampler(n=4, collisions=True)
    seen = set()
    for index in range(400):
        donor = one.draw(index, ["main"], seed=0).donors[0]
        seen |= {(p, donor.lexical[p], donor.reflexive[p]) for p in donor.groups}
    assert len(seen) == 4**3


def test_the_published_exchange_leaves_the_other_groups():
    for name, moved in (("transposed", {2, 3}), ("previous", {3, 4, 5})):
        donor_set = sampler(n=8).draw(3, [name], seed=2)
        donor = donor_set.donors[0]
        changed = [g for g in range(8) if donor.matrix[g] != donor_set.matrix[g]]
        assert len(changed) in moved and len(donor.groups) == 1
        p = donor.groups[0]
        before = donor.matrix[p - 1] == donor_set.matrix[p - 1] if p else True
        assert before is (name == "transposed")


def test_two_rotations_part_everywhere():
    rng = np.random.default_rng(0)
    for n in (3, 4, 9):
        first, second = apart(n, rng)
        assert sorted(first) == sorted(second) == list(range(n))
        assert not ((first == second) | (first == np.arange(n)) | (second == np.arange(n))).any()
    with pytest.raises(PromptError, match="use n of 4 or more"):
        apart(2, rng)


def test_sets_are_drawn_again_from_their_seed():
    one = sampler()
    assert one.draw(4, ["main"], seed=1) == one.draw(4, ["main"], seed=1)
    assert one.draw(4, ["main"], seed=1) != one.draw(4, ["main"], seed=2)


def test_small_pools_and_unknown_designs_are_refused():
    with pytest.raises(PromptError, match="pool musician has .* words .* 99 are needed"):
        sampler(n=99).draw(0, ["main"], seed=0)
    with pytest.raises(UnknownNameError, match="did you mean main"):
        sampler().draw(0, ["mane"], seed=0)
    full = min(len(w) for w in TASK.pools.values())
    with pytest.raises(PromptError, match="words"):
        sampler(n=full).draw(0, ["all_new"], seed=0)
    with pytest.raises(PromptError, match="needs more than 4 groups"):
        for index in range(9):
            sampler(n=4).draw(index, ["previous"], seed=0)


def test_filler_holds_no_entity_and_competing_filler_none_of_the_groups():
    matrix = sampler().draw(0, ["main"], seed=0).matrix
    pool = {w.lower() for words in TASK.pools.values() for w in words}
    mine = {w.lower() for row in matrix for w in row}

    def words(kind):
        texts = filler(TASK, matrix, gaps=5, sentences=20, kind=kind)
        assert len(texts) == 5
        return {w.strip(".,").lower() for text in texts for w in text.split()}

    assert not words("plain") & pool
    assert words("competing") & pool and not words("competing") & mine
    assert filler(TASK, matrix, gaps=5, sentences=0, kind="plain") == ()
    shuffled = matrix[::-1]
    same = filler(TASK, shuffled, gaps=5, sentences=3, kind="plain")
    assert same == filler(TASK, matrix, gaps=5, sentences=3, kind="plain")
