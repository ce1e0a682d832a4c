"""Sentences, repetition and cutting, against brute force and by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from interp.errors import PromptError
from probes.haystack import (
    Document,
    adds_space,
    check_repetition,
    cut,
    load_text,
    repetition,
    sentences,
)


@pytest.fixture(scope="module")
def docs():
    return load_text()


@pytest.fixture(scope="module")
def bytewise():
    """Every byte is a token, so decoding gives the text back exactly."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.fixture(scope="module")
def wordwise(docs):
    """A token for each run of white space and each other run."""
    parts = {p for d in docs for p in itertools.chain(d.text.split(), ["\n", "\n\n", " "])}
    core = Tokenizer(models.WordLevel({p: i for i, p in enumerate(["?", *sorted(parts)])}, "?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")


def prefixing():
    """Like Llama-2: a normalizer puts ▁ before every text, whatever it begins with."""
    vocabulary = {c: i for i, c in enumerate("?▁\nabcdefghijklmnopqrstuvwxyzABT.")}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="?"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")


def text_of(tokenizer, haystack):
    return tokenizer.decode([i for sentence in haystack.sentences for i in sentence])


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


def brute_repetition(text, window):
    seen, repeats = set(), 0
    windows = [text[i : i + window] for i in range(len(text) - window + 1)]
    for piece in windows:
        repeats += piece in seen
        seen.add(piece)
    return repeats / len(windows) if windows else 0.0


@settings(deadline=None)
@given(st.text(alphabet="ab€", max_size=80), st.integers(1, 12))
def test_repetition_equals_brute_force(text, window):
    assert repetition(text, window=window) == pytest.approx(brute_repetition(text, window))


def test_repetition_counts_across_documents_and_warns():
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 1000)))
    twice = check_repetition([Document("a", text), Document("b", text)])
    assert twice.shares == (("a", 0.0), ("b", 1.0)) and twice.total == 0.5
    assert "b 100.0%" in twice.warning and "a " not in twice.warning.split(":")[1][:4]
    assert check_repetition([Document("a", text)]).warning is None
    assert check_repetition([]).total == 0.0
    with pytest.raises(PromptError, match="window of 0"):
        repetition(text, window=0)


def test_our_texts_are_clean(docs):
    sizes = [len(doc.text.encode()) for doc in docs]
    assert len(docs) >= 3 and 350_000 <= sum(sizes) <= 550_000
    assert check_repetition(docs).total < 0.005 and check_repetition(docs).warning is None
    for doc in docs:
        lowered = doc.text.casefold()
        for dirt in ("gutenberg", "ebook", "transcriber", "[", "]", "_", "*", "|", "  ", "\t"):
            assert dirt not in lowered, (doc.name, dirt)
        assert doc.text.isprintable() or set(filter(lambda c: not c.isprintable(), doc.text)) == {
            "\n"
        }


@pytest.mark.parametrize("seed", [0, 1])
def test_stretches_are_whole_disjoint_and_repeatable(docs, bytewise, seed):
    cuts = cut(docs, bytewise, n_haystacks=8, n_tokens=16_000, seed=seed)
    assert cuts == cut(docs, bytewise, n_haystacks=8, n_tokens=16_000, seed=seed)
    assert cuts != cut(docs, bytewise, n_haystacks=8, n_tokens=16_000, seed=seed + 7)
    whole = {doc.name: "\n\n" + doc.text.strip() for doc in docs}
    spans = []
    for haystack in cuts:
        assert 16_000 <= haystack.n_tokens < 16_000 + 1_100
        name, text = haystack.name.split("[")[0], text_of(bytewise, haystack)
        start = whole[name].find(text)
        assert start >= 0 and max(map(len, haystack.sentences)) <= 200
        spans.append((name, start, start + len(text)))
    assert len({name for name, _, _ in spans}) >= 4
    for (a, _, stop), (b, start, _) in itertools.pairwise(sorted(spans)):
        assert a != b or stop <= start


def test_all_the_room_can_be_used(wordwise):
    text = " ".join(f"{w} it went on." for w in ["Then"] * 40)
    tight = cut([Document("t", text)], wordwise, n_haystacks=20, n_tokens=8, seed=5)
    assert [h.n_tokens for h in tight] == [8] * 20


def test_long_sentences_are_split_at_whitespace(bytewise):
    text = "a list of " + "items, more " * 100 + "x" * 390
    made = cut([Document("t", text)], bytewise, n_haystacks=1, n_tokens=len(text) + 2)[0]
    assert text_of(bytewise, made) == "\n\n" + text
    assert sorted(map(len, made.sentences))[-2:][0] <= 200 < max(map(len, made.sentences)) <= 400


def test_short_documents_are_joined_and_the_name_says_so(bytewise):
    docs = [Document("a", "One went out. " * 10), Document("b", "Two came in. " * 10)]
    (made,) = cut(docs, bytewise, n_haystacks=1, n_tokens=200)
    assert made.name.startswith(("a+b[", "b+a["))
    assert text_of(bytewise, made).count("\n\n") >= 1


def test_too_little_text_is_refused_with_figures(bytewise):
    docs = [Document("a", "One went out. " * 10)]
    with pytest.raises(PromptError, match=r"has 141 tokens.*need 400.*at most 1 .*--haystack"):
        cut(docs, bytewise, n_haystacks=4, n_tokens=100)
    with pytest.raises(PromptError, match="at least 1"):
        cut(docs, bytewise, n_haystacks=0, n_tokens=100)


def test_a_space_of_the_tokenizers_own_is_not_doubled(bytewise):
    tokenizer = prefixing()
    assert adds_space(tokenizer) and not adds_space(bytewise)
    docs = [Document("a", "A ran. Bob sat.\n\nThe end.")]
    (made,) = cut(docs, tokenizer, n_haystacks=1, n_tokens=20)
    pieces = ["".join(tokenizer.convert_ids_to_tokens(list(ids))) for ids in made.sentences]
    assert pieces == ["\n\nA▁ran.", "▁Bob▁sat.", "\n\nThe▁end."]


def test_files_folders_and_patterns(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_bytes("\ufeffOne.\r\nTwo.".encode())
    (tmp_path / "sub" / "b.md").write_text("Three.", "utf-8")
    assert load_text(tmp_path / "a.txt") == [Document("a.txt", "One.\nTwo.")]
    assert [d.name for d in load_text(str(tmp_path))] == ["a.txt", "b.md"]
    assert [d.name for d in load_text([tmp_path / "*.txt", tmp_path])] == ["a.txt", "b.md"]
    (tmp_path / "b.md").write_text("Four.", "utf-8")
    assert len({d.name for d in load_text(tmp_path)}) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bin.txt", b"\x00\x01", "binary"),
        ("empty.txt", b" \n", "empty"),
        ("latin.txt", b"caf\xe9", r"not UTF-8 \(byte 3\)"),
        ("missing.txt", None, "does not exist"),
        ("*.text", None, "no file matches"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message) as caught:
        load_text(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_text_and_an_empty_list_are_refused(tmp_path):
    with pytest.raises(PromptError, match="holds no"):
        load_text(tmp_path)
    with pytest.raises(PromptError, match="no haystack file"):
        load_text([])


@pytest.mark.real
def test_a_real_tokenizer_cuts_what_we_promise(docs, smollm):
    assert len(cut(docs, smollm, n_haystacks=6, n_tokens=4096)) == 6
    made = cut(docs, smollm, n_haystacks=2, n_tokens=16_384)
    for haystack in made:
        name = haystack.name.split("[")[0]
        whole = next("\n\n" + d.text.strip() for d in docs if d.name == name)
        assert text_of(smollm, haystack) in whole


@pytest.fixture(scope="module")
def smollm():
    from interp.bundled import model_path

    folder = model_path("smollm2-135m")
    if folder is None:
        pytest.skip("smollm2-135m is not fetched: run `mnemoscope models fetch`")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
