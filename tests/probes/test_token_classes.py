"""Texts and classes of tokens, for the three kinds of tokenizer that there are."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from interp.errors import ModelError, PromptError
from probes.token_classes import (
    CLASSES,
    function_words,
    given_classes,
    linguistic_classes,
    read_classes,
)
from probes.token_text import BYTES, token_bytes, token_text, visible

TEXTS = {
    " the": "function word", "The": "function word", "the": "word-internal", "'s": "function word",
    " US": "content", " us": "function word", " Tokyo": "content", "ing": "word-internal",
    ",": "punctuation", " (": "punctuation", " \u2014": "punctuation", " 12": "digit", "7": "digit",
    "\\": "markup", " {": "markup", "</p": "markup", "\n\n": "whitespace", " ": "whitespace",
    "\t": "whitespace", "x86": "other", "\u20ac": "other", "\u4fe1": "other", 
    " na\u00efve": "content", " well-known": "content",
}  # fmt: skip
NAMES = list(CLASSES)


def fast(vocab, decoder, *, special=("<s>",)):
    made = Tokenizer(models.WordLevel(vocab, unk_token=next(iter(vocab))))
    made.decoder = decoder
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(s, special=True) for s in special])
    return PreTrainedTokenizerFast(tokenizer_object=made)


def byte_level():
    letter = {b: c for c, b in BYTES.items()}
    names = ["".join(letter[b] for b in t.encode()) for t in TEXTS]
    names.append("".join(letter[b] for b in b" \xe2\x88"))
    return fast({n: i for i, n in enumerate(names)}, decoders.ByteLevel())


def sentencepiece(replace):
    names = [t.replace(" ", "\u2581") for t in TEXTS] + ["<0xE2>"]
    bar = decoders.Replace("\u2581", " ") if replace else decoders.Metaspace()
    decoder = decoders.Sequence([bar, decoders.ByteFallback(), decoders.Fuse()])
    return fast({n: i for i, n in enumerate(names)}, decoder)


@pytest.mark.parametrize("made", [byte_level(), sentencepiece(True), sentencepiece(False)])
def test_classes_and_texts_are_those_of_the_text(made):
    n = len(TEXTS)
    assert [p.decode() for p in token_bytes(made)[:n]] == list(TEXTS)
    found = [NAMES[c] for c in linguistic_classes(made, n_vocab=n + 5)]
    assert found == [*TEXTS.values(), "other", "special", "other", "other", "other"]
    shown = token_text(made, range(n + 2))
    assert shown[0] == "␣the" and shown[n] in ("␣<0xE2><0x88>", "<0xE2>")
    assert shown[list(TEXTS).index("\n\n")] == "⏎⏎" and shown[n + 1] == "<s>"
    assert token_text(made, [999]) == ["<999>"]


def test_wordpiece_marks_the_inside_of_words_instead():
    vocab = {"the": 0, "##ing": 1, "tokyo": 2, ",": 3, "##s": 4, "[UNK]": 5}
    made = fast(vocab, decoders.WordPiece(), special=("[UNK]",))
    found = [NAMES[c] for c in linguistic_classes(made)]
    assert found == [
        "function word", "word-internal", "content", "punctuation", "word-internal", "special",
    ]  # fmt: skip
    assert token_text(made, [0, 1]) == ["␣the", "ing"]


def test_byte_table_is_a_bijection_that_agrees_with_the_tokenizers_library():
    letters = pre_tokenizers.ByteLevel.alphabet()
    assert set(letters) == set(BYTES) and sorted(BYTES.values()) == list(range(256))
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("a b\n", "\u20ac\u00ad\u00ff\x7f"):
        [(name, _)] = cut.pre_tokenize_str(text)
        assert bytes(BYTES[c] for c in name).decode() == text


def test_visible_forms_keep_half_characters_and_controls():
    assert visible(b"a \xe2\x82\n\x00") == "a␣<0xE2><0x82>⏎<U+0000>"


def test_the_list_of_function_words_is_clean():
    words = function_words()
    assert {"the", "of", "which", "not", "would", "'s"} <= set(words) and 200 < len(words) < 400
    assert all(w == w.lower().strip() for w in words)


def test_classes_of_ones_own(tmp_path):
    path, made = tmp_path / "classes.json", byte_level()
    path.write_text(json.dumps({"marks": [","], "articles": ["␣the", "The"]}), "utf-8")
    names, found = given_classes(made, read_classes(path))
    assert names == ("marks", "articles", "other")
    order = list(TEXTS)
    assert found[[order.index(t) for t in (",", " the", "The", "the")]].tolist() == [0, 1, 1, 2]
    with pytest.raises(PromptError, match="no single token"):
        given_classes(made, {"a": [" of course"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no classes"),
        ('{"a": "x"}', "holds no classes"),
        ('{"a": ["x"], "b": ["x"]}', "is in a and b"),
    ],
)
def test_bad_class_files_are_refused(tmp_path, content, message):
    path = tmp_path / "c.json"
    path.write_text(content, "utf-8")
    with pytest.raises(PromptError, match=message):
        read_classes(path)


def test_slow_tokenizers_are_refused():
    with pytest.raises(ModelError, match="no fast tokenizer"):
        token_bytes(object())
