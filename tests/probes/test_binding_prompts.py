"""Prompts of the bundled model's own tokenizer, and of planted ones: every entity in its place."""

import bindings
import pytest

from interp.errors import PromptError, UnknownNameError
from probes.answer_form import FORMS, find_form
from probes.binding_prompts import (
    STYLES,
    Writer,
    check_style,
    shared_start,
    split_words,
    styles_of,
)
from probes.binding_tasks import read_task, task_names

MATRIX = {
    "boxes": (("apple", "B"), ("book", "K"), ("coat", "Q"), ("bell", "Z")),
    "programming_dict": tuple(
        (v, n, c)
        for v, n, c in zip(
            "xyzw",
            ("Anna", "Bob", "Carl", "Emma"),
            ("France", "Spain", "Peru", "Cuba"),
            strict=True,
        )
    ),
}


def matrix_of(task, tokenizer, n=4):
    if task.name in MATRIX:
        return MATRIX[task.name]
    pools = [
        [w for w in task.pools[r] if w not in split_words(tokenizer, task.pools[r])]
        for r in task.roles
    ]
    return tuple(zip(*(pool[:n] for pool in pools), strict=True))


@pytest.mark.real
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", task_names())
def test_places_hold_their_words(real, name, style):
    tokenizer, task = real.tokenizer, read_task(name)
    matrix = matrix_of(task, tokenizer)
    for question in task.questions:
        writer = Writer(tokenizer, task, question, style)
        for group in (0, 3):
            prompt = writer.write(matrix, group)
            said = {key: tokenizer.decode([prompt.tokens[i]]).strip()
                    for key, i in prompt.places.items()}  # fmt: skip
            assert said == {(g, k): w for g, row in enumerate(matrix) for k, w in enumerate(row)}
            named = {r: tokenizer.decode([prompt.tokens[i]]).strip()
                     for r, i in prompt.named.items()}  # fmt: skip
            assert named == prompt.asked and set(named) == set(question.asked)
            assert min(prompt.named.values()) > max(prompt.places.values())
            k = task.roles.index(question.target)
            assert prompt.answer == matrix[group][k]
            assert prompt.candidates == tuple(row[k] for row in matrix)


@pytest.mark.real
def test_prompts_are_the_tokenizers_own_tokens_of_one_text(real):
    task = read_task("transportation")
    matrix = matrix_of(task, real.tokenizer)
    for style in styles_of(real.tokenizer):
        writer = Writer(real.tokenizer, task, task.question("vehicle"), style, sentences=2)
        tokens = writer.write(matrix, 1).tokens
        text = real.tokenizer.decode(tokens)
        assert real.tokenizer(text, add_special_tokens=False)["input_ids"] == list(tokens)
        assert ". " in text and text.count(matrix[1][1]) == 1


@pytest.mark.real
def test_what_prompts_share_ends_where_their_questions_part(real):
    task = read_task("boxes")
    writer = Writer(real.tokenizer, task, task.question("object"), "chat")
    prompts = [writer.write(MATRIX["boxes"], g) for g in range(4)]
    start = shared_start(prompts)
    heads = {p.tokens[:start] for p in prompts}
    assert len(heads) == 1 and len({p.tokens[start] for p in prompts}) > 1
    assert start > max(prompts[0].places.values())
    assert shared_start([prompts[0]]) == len(prompts[0].tokens) - 1


def test_a_beginning_of_sequence_stands_once():
    model, _, path = bindings.world("mixture")
    task = read_task(path)
    writer = Writer(model.tokenizer, task, task.questions[0], "completion")
    words = [pool[:4] for pool in (task.pools[r] for r in task.roles)]
    tokens = writer.write(tuple(zip(*words, strict=True)), 0).tokens
    assert tokens.count(model.tokenizer.bos_token_id) == 1
    assert tokens[0] == model.tokenizer.bos_token_id


@pytest.mark.real
def test_what_cannot_be_written_is_refused(real):
    task = read_task("music_performance")
    writer = Writer(real.tokenizer, task, task.question("genre"), "chat")
    rows = list(matrix_of(task, real.tokenizer))
    rows[1] = (rows[1][0], "reggae", rows[1][2])
    with pytest.raises(PromptError, match="'reggae' is not one token in this prompt"):
        writer.write(tuple(rows), 0)
    with pytest.raises(UnknownNameError, match="prompt style"):
        check_style(real.tokenizer, "chatty")
    planted, _, _ = bindings.world("mixture")
    with pytest.raises(PromptError, match="no chat template"):
        check_style(planted.tokenizer, "chat")
    assert styles_of(planted.tokenizer) == ("plain", "completion")


def test_the_form_of_answers_is_what_the_model_says():
    """The planted model that answers `Apple` where the context has `apple`."""
    for name, form in (("mixture", "space"), ("capitals", "space, capital")):
        model, truth, ready, _ = bindings.ready(name)
        assert ready.answers.form == form and ready.answers.mass > 0.8
        for word, token in list(truth.forms.items())[:3] if name == "capitals" else ():
            assert ready.answers.token(word) == model.tokenizer.convert_tokens_to_ids(token)
        assert set(ready.answers.others) == set(FORMS) - {form}


def test_no_form_with_enough_words_is_refused():
    model, _, ready, _ = bindings.ready("mixture")
    prompt = ready.writer.write(ready.sampler().draw(0, ["main"], seed=0).matrix, 0)
    logits = model.prefill(prompt.tokens).logits[None]
    with pytest.raises(PromptError, match="answers cannot be scored: .* are needed"):
        find_form(model.tokenizer, [prompt], logits, words=prompt.candidates, least=99)


def spaced_tokenizer():
    """A tokenizer that puts a space before every text, as those of Llama-2 and Mistral do."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["piano", "Piano", "rock", "Ann", "Bob", "drum", "jazz", "plays", "on", "the", "What"]
    letters = sorted({c for w in words for c in w} | set("\n.,:?"))
    pieces = [("<unk>", 0.0), ("\u2581", -3.0)]
    pieces += [("\u2581" + w, -1.0) for w in words] + [(w, -2.0) for w in words]
    pieces += [(c, -9.0) for c in letters]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def test_a_tokenizer_that_puts_a_space_first_writes_words_as_in_a_text():
    from probes.answer_form import Answers
    from probes.format import encode

    tokenizer = spaced_tokenizer()
    assert encode(tokenizer, "piano") == encode(tokenizer, " piano")  # the trap
    assert split_words(tokenizer, ["piano", "rock", "tuba"]) == ["tuba"]
    ids = {name: Answers(name, 1.0, {}, tokenizer).token("piano") for name in FORMS}
    told = {name: tokenizer.convert_ids_to_tokens(i) for name, i in ids.items()}
    assert told == {
        "space": "\u2581piano", "bare": "piano", "space, capital": "\u2581Piano",
        "capital": "Piano",
    }  # fmt: skip
