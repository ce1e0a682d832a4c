"""Needles: what the file promises, how they are drawn and spread, and where their answers lie."""

import collections
import itertools
import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from interp.errors import PromptError, UnknownNameError
from probes.haystack import load_text
from probes.needle import (
    Needle,
    load_needles,
    select,
    sentence_with,
    similarity,
    spread,
    tokenise,
    value_for,
)
from probes.rouge import contains, words

NEEDLES = load_needles()
PAIRS = [(needle, value) for needle in NEEDLES for value in needle.values]
UNSPACED = {"zh", "ja"}
PLAIN = Needle("n", "fact", "en", "The lamp is {value} today.", "Which?", ("pale violet", "4175"))


def byte_bpe(*, split_digits):
    """Byte-level BPE trained on our English text and the needles, 3000 merges."""
    parts = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(parts)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([d.text[:60_000] for d in load_text()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core)


def word_level():
    parts = {w for n, v in PAIRS for w in sentence_with(n, v).split()}
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["?", *sorted(parts)])}, "?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")


@pytest.fixture(
    scope="module", params=["digits", "plain", pytest.param("smollm", marks=pytest.mark.real)]
)
def tokenizer(request):
    if request.param != "smollm":
        return byte_bpe(split_digits=request.param == "digits")
    from interp.bundled import model_path

    folder = model_path("smollm2-135m")
    if folder is None:
        pytest.skip("smollm2-135m is not fetched: run `mnemoscope models fetch`")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


# what the file promises


def test_number_kinds_and_languages():
    kinds = collections.Counter(n.kind for n in NEEDLES)
    assert len(NEEDLES) >= 72 and len({n.id for n in NEEDLES}) == len(NEEDLES)
    assert set(kinds) == {"fact", "key_value", "person_attribute", "code_constant", "event"}
    assert min(kinds.values()) >= 10
    foreign = collections.Counter(n.language for n in NEEDLES if n.language != "en")
    assert sum(foreign.values()) >= 14 and len(foreign) >= 4


@pytest.mark.parametrize("needle", NEEDLES, ids=lambda n: n.id)
def test_each_needle_is_well_formed(needle):
    assert len(needle.values) >= 4 and needle.question.endswith(("?", "？", ";", "؟", "。"))
    before, after = needle.sentence.split("{value}")
    assert len(before.split()) >= 2 or needle.language in UNSPACED
    assert before.endswith(" ") or needle.language in UNSPACED
    assert after.endswith((".", "。", "।"))
    for value in needle.values:
        assert value == value.strip() and 1 <= len(value.split()) <= 4
        assert not contains(value, needle.question)
        assert contains(value, sentence_with(needle, value))
        assert sum(contains(other, sentence_with(needle, value)) for other in needle.values) == 1


def shape(value):
    """Letters and digits by class: values of one needle must agree in it."""
    if value.replace(".", "").replace(":", "").isdigit():
        return "number"
    return "code" if any(c.isdigit() for c in value) else "words"


def test_values_of_a_needle_are_of_one_type():
    for needle in NEEDLES:
        assert len({shape(v) for v in needle.values}) == 1, needle.id
        if shape(needle.values[0]) == "words":
            # otherwise an answer without the article would count as wrong
            assert not any(v.startswith(("a ", "an ", "the ")) for v in needle.values), needle.id


def test_the_words_before_a_value_point_to_it_alone():
    """The tool may open the answer with them: they must not occur anywhere else."""
    text = f" {' '.join(words(' '.join(d.text for d in load_text())))} "
    whole = {n.id: f" {' '.join(words(n.sentence + ' ' + n.question))} " for n in NEEDLES}
    for needle in NEEDLES:
        before = words(needle.sentence.split("{value}")[0])
        cue = f" {' '.join(before[-6 if needle.language in UNSPACED else -3 :])} "
        assert len(before) >= 3 and cue not in text, needle.id
        assert [name for name, said in whole.items() if cue in said] == [needle.id]
        assert whole[needle.id].count(cue) == 1


def test_no_value_is_shared_or_stands_in_a_text_or_another_needle():
    values = [value.casefold() for _, value in PAIRS]
    assert len(set(values)) == len(values)
    text = f" {' '.join(words(' '.join(d.text for d in load_text())))} "
    sentences = [f" {' '.join(words(n.sentence + ' ' + n.question))} " for n in NEEDLES]
    for _, value in PAIRS:
        wanted = f" {' '.join(words(value))} "
        assert wanted not in text, value
        assert not any(wanted in sentence for sentence in sentences), value


def test_needles_are_unlike_one_another():
    likeness = [similarity(a, b) for a, b in itertools.combinations(NEEDLES, 2)]
    assert max(likeness) < 0.35 and sum(likeness) / len(likeness) < 0.12


# drawing and spreading


def test_similarity_by_hand():
    a = Needle("a", "fact", "en", "Grey stone is {value}.", "Where is grey stone?", ("12",))
    b = Needle("b", "event", "en", "Grey birds fell {value}.", "When?", ("34",))
    # grey stone where | grey birds fell when: 1 of 6 words, and both answers are numbers
    assert similarity(a, b) == pytest.approx(0.8 / 6 + 0.1)
    assert similarity(a, b) == similarity(b, a) and similarity(a, a) == 1.0


def test_select_is_seeded_and_takes_kinds_in_turn():
    drawn = select(NEEDLES, 10, seed=3)
    assert drawn == select(NEEDLES[::-1], 10, seed=3) != select(NEEDLES, 10, seed=4)
    assert set(collections.Counter(n.kind for n in drawn).values()) == {2}
    only = select(NEEDLES, 4, seed=0, kinds=["fact"], languages=["zh", "ru", "fr", "de"])
    assert {n.kind for n in only} == {"fact"} and {n.language for n in only} == {
        "zh",
        "ru",
        "fr",
        "de",
    }
    assert len(select(NEEDLES, len(NEEDLES), seed=1)) == len(NEEDLES)


def test_select_refuses_names_and_numbers():
    with pytest.raises(UnknownNameError, match="did you mean fact"):
        select(NEEDLES, 1, seed=0, kinds=["facts"])
    with pytest.raises(UnknownNameError, match="language 'xx'"):
        select(NEEDLES, 1, seed=0, languages=["xx"])
    with pytest.raises(PromptError, match="cannot draw 99 needles: 3 fit"):
        select(NEEDLES, 99, seed=0, languages=["fr"])


@pytest.mark.parametrize("n_groups", [1, 3, 8, len(NEEDLES)])
def test_spread_is_an_even_partition(n_groups):
    groups = spread(NEEDLES, n_groups, seed=2)
    members = [n for group in groups for n in group.needles]
    assert sorted(n.id for n in members) == sorted(n.id for n in NEEDLES)
    sizes = [len(group.needles) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    assert groups == spread(NEEDLES[::-1], n_groups, seed=2)
    for group in groups:
        for needle, likeness in zip(group.needles, group.similarity, strict=True):
            others = [similarity(needle, m) for m in group.needles if m is not needle]
            assert likeness == max(others, default=0.0)


def within(groups):
    """Mean over needles of the greatest similarity to a mate."""
    nearest = [max(similarity(n, m) for m in g if m is not n) for g in groups for n in g]
    return sum(nearest) / len(nearest)


@pytest.mark.parametrize("n_groups", [4, 8])
def test_spread_parts_what_is_alike_better_than_chance(n_groups):
    made = [group.needles for group in spread(NEEDLES, n_groups)]
    for seed in range(20):
        mixed = random.Random(seed).sample(NEEDLES, len(NEEDLES))
        assert within(made) < within([mixed[i::n_groups] for i in range(n_groups)])


def test_spread_refuses_more_groups_than_needles():
    with pytest.raises(PromptError, match="cannot spread"):
        spread(NEEDLES[:3], 4)


def test_a_value_is_drawn_by_seed_and_all_are_reachable():
    assert value_for(PLAIN, 5) == value_for(PLAIN, 5)
    drawn = {value_for(NEEDLES[0], seed) for seed in range(60)}
    assert drawn == set(NEEDLES[0].values)


# tokens


def test_every_needle_round_trips(tokenizer):
    for needle, value in PAIRS:
        made = tokenise(needle, value, tokenizer)
        space = "" if needle.language in UNSPACED else " "
        sentence = space + sentence_with(needle, value)
        before = sentence[: len(space) + needle.sentence.index("{value}")]
        assert tokenizer.decode(list(made.ids)) == sentence
        assert made.exact and len(made.answer) >= 2
        # an oracle that uses no offsets: decode the parts on either side
        head = tokenizer.decode(list(made.ids[: made.answer.start]))
        answer = tokenizer.decode(list(made.answer_ids))
        assert answer.strip() == value
        assert (head + answer)[: len(before)] == before
        assert head.rstrip() == before.rstrip() and before.startswith(head)
        assert tuple(made.ids[made.answer.start - len(made.lead) : made.answer.start]) == made.lead
        assert not tokenizer.decode(list(made.lead)).strip()


def test_the_answer_has_the_tokens_of_a_continuation(tokenizer):
    """After a cue that ends in a colon, lead + answer are what the model should write."""
    for needle, value in PAIRS:
        made = tokenise(needle, value, tokenizer)
        if needle.language not in UNSPACED:
            cue = tokenizer("Answer:", add_special_tokens=False)["input_ids"]
            whole = tokenizer(f"Answer: {value}.", add_special_tokens=False)["input_ids"]
            assert tuple(whole[len(cue) :])[: len(made.lead + made.answer_ids)] == (
                made.lead + made.answer_ids
            )


def test_a_lone_space_before_digits_is_lead_not_answer():
    tokenizer = byte_bpe(split_digits=True)
    made = tokenise(PLAIN, "4175", tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(made.lead)) == ["Ġ"]
    assert tokenizer.convert_ids_to_tokens(list(made.answer_ids)) == list("4175")
    assert tokenise(PLAIN, "pale violet", tokenizer).lead == ()


def test_partial_bytes_belong_to_their_character():
    tokenizer = byte_bpe(split_digits=False)
    needle = Needle("z", "fact", "zh", "它叫“{value}”。", "？", ("青崖雪",))
    made = tokenise(needle, "青崖雪", tokenizer)
    assert len(made.answer) >= 6 and tokenizer.decode(list(made.answer_ids)) == "青崖雪"


def test_punctuation_in_an_answer_token_is_tolerated_and_recorded():
    tokenizer = word_level()
    ends = next(n for n in NEEDLES if n.sentence.endswith("{value}.") and n.language == "en")
    made = tokenise(ends, ends.values[0], tokenizer)
    assert not made.exact and tokenizer.decode(list(made.answer_ids)) == ends.values[0] + "."
    middle = next(n for n in NEEDLES if "{value} " in n.sentence)
    assert tokenise(middle, middle.values[0], tokenizer).exact


def test_what_a_tokenizer_cannot_place_is_refused():
    glued = Needle("g", "fact", "en", "The code is QX{value}Z here.", "?", ("417",))
    core = Tokenizer(models.WordLevel({"?": 0, "The": 1, "code": 2, "QX417Z": 3}, "?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words_only = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    with pytest.raises(PromptError, match="'g' cannot be placed.*also cover 'QXZ'"):
        tokenise(glued, "417", words_only)
    with pytest.raises(PromptError, match="'n' cannot be placed.*decode to"):
        tokenise(PLAIN, "4175", words_only)

    class Slow:
        is_fast = False

    with pytest.raises(PromptError, match="use_fast=True"):
        tokenise(PLAIN, "4175", Slow())
