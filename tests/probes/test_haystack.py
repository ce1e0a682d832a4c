"""Cutting stretches of known length, checked by decoding them again."""

import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from interp.errors import PromptError
from probes.haystack import Document, adds_space, cut, load_text


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


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_a_trained_bpe_gives_the_text_back(docs, add_prefix_space):
    """With merges of spaces and line breaks in it, which an added space must not join."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    core.train_from_iterator([" \n\n \n" * 50, *(d.text[:20_000] for d in docs)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert adds_space(tokenizer) is add_prefix_space
    for haystack in cut(docs, tokenizer, n_haystacks=6, n_tokens=3_000):
        whole = next("\n\n" + d.text.strip() for d in docs if haystack.name.startswith(d.name))
        assert text_of(tokenizer, haystack) in whole


@settings(deadline=None, max_examples=60)
@given(
    st.text(alphabet=st.sampled_from("aB.!? \n\té。’"), min_size=1).filter(str.strip)
    | st.text(min_size=1, max_size=300).filter(str.strip)
)
def test_all_tokens_of_a_text_decode_to_it(bytewise, text):
    expected = "\n\n" + text.strip()
    n = len(expected.encode())
    (made,) = cut([Document("t", text)], bytewise, n_haystacks=1, n_tokens=n)
    assert text_of(bytewise, made) == expected and made.n_tokens == n


def test_importing_needs_no_backend():
    modules = "probes.haystack, probes.needle, probes.rouge, probes.sentences"
    code = f"import sys, {modules}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.real
@pytest.mark.parametrize(("n", "length"), [(6, 4_200), (2, 16_500), (8, 8_000)])
def test_a_real_tokenizer_cuts_what_we_promise(docs, smollm, n, length):
    made = cut(docs, smollm, n_haystacks=n, n_tokens=length)
    assert len(made) == n
    for haystack in made:
        name = haystack.name.split("[")[0]  # one document: none had to be joined
        whole = next("\n\n" + d.text.strip() for d in docs if d.name == name)
        assert haystack.n_tokens >= length and text_of(smollm, haystack) in whole


@pytest.fixture(scope="module")
def smollm():
    from interp.bundled import model_path

    folder = model_path("smollm2-135m")
    if folder is None:
        pytest.skip("smollm2-135m is not fetched: run `mnemoscope models fetch`")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
