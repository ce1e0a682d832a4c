"""GGUF conversion: the oracle is the model that the GGUF file was written from."""

import json
import time

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as chatter

from interp import gguf as conversion
from interp.bundled import model_path
from interp.errors import ModelError
from interp.gguf import convert, converted, describe_types, quiet
from interp.model_cache import read_record
from tests.interp.tiny import gguf_tensors, logits, tiny_model, write_gguf

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, request):
    if request.node.get_closest_marker("real"):
        return None  # the user's own cache
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def reload(folder):
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_converted_weights_are_those_of_the_original(tmp_path):
    original = tiny_model()
    facts = convert(write_gguf(tmp_path / "tiny.gguf", original), tmp_path / "out")
    model, tokenizer = reload(tmp_path / "out")
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert torch.equal(logits(model), logits(original))
    assert facts["tied_embeddings"] is True
    assert facts["quantisation"] == "F32"
    assert facts["parameters"] == original.num_parameters()
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    assert tokenizer.chat_template.startswith("{% for m in messages %}")


def test_quantised_weights_are_within_half_a_step(tmp_path):
    original = tiny_model()
    facts = convert(write_gguf(tmp_path / "t.gguf", original, quantise=True), tmp_path / "out")
    model, _ = reload(tmp_path / "out")
    assert facts["quantisation"] == "Q8_0, F32"
    weight = original.model.layers[1].mlp.up_proj.weight.detach()
    blocks = weight.reshape(-1, 32)  # Q8_0: one scale per 32 values, 127 steps to the largest
    step = (blocks.abs().amax(1, keepdim=True) / 127).expand_as(blocks).reshape(weight.shape)
    error = (model.model.layers[1].mlp.up_proj.weight.detach() - weight).abs()
    assert (error <= 0.51 * step + 1e-3 * weight.abs()).all()
    assert error.max() > 0


@pytest.mark.parametrize(("pre", "pieces"), [("smollm", ["1", "2", "1"]), ("gpt-2", ["12", "1"])])
def test_digits_are_split_where_the_file_says_so(tmp_path, pre, pieces):
    convert(write_gguf(tmp_path / "t.gguf", tiny_model(), pre=pre), tmp_path / "out")
    _, tokenizer = reload(tmp_path / "out")
    assert tokenizer.tokenize("121") == pieces
    assert tokenizer.decode(tokenizer("the <|im_end|> 121").input_ids) == "the <|im_end|> 121"


def test_qwen_rule_normalises_to_nfc(tmp_path):
    convert(write_gguf(tmp_path / "t.gguf", tiny_model(), pre="qwen2"), tmp_path / "out")
    _, tokenizer = reload(tmp_path / "out")
    assert tokenizer("e\u0301").input_ids == tokenizer("\u00e9").input_ids


def test_unverified_rule_is_logged(tmp_path, caplog):
    convert(write_gguf(tmp_path / "t.gguf", tiny_model(), pre="klingon"), tmp_path / "out")
    assert "'klingon' is unverified" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "nonesuch"}, "architecture 'nonesuch'"),
        ({"leave_out": "blk.1.ffn_up.weight"}, "up_proj.weight"),
        ({"parts": 3}, "one of 3 parts"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path, options, message):
    path = write_gguf(tmp_path / "bad.gguf", tiny_model(), **options)
    with pytest.raises(ModelError, match=message) as caught:
        convert(path, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [3, 60, 3000, -1])
def test_truncated_file_is_refused(tmp_path, keep):
    whole = write_gguf(tmp_path / "t.gguf", tiny_model()).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:keep])
    with pytest.raises(ModelError, match="truncated|not a GGUF") as caught:
        convert(tmp_path / "cut.gguf", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_header_without_tensors_is_refused(tmp_path):
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "bare.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="bare.gguf holds no tensors"):
        convert(tmp_path / "bare.gguf", tmp_path / "out")


def test_other_file_and_absent_file_are_refused(tmp_path):
    (tmp_path / "x.gguf").write_text("hello, no model here")
    with pytest.raises(ModelError, match="not a GGUF file"):
        convert(tmp_path / "x.gguf", tmp_path / "out")
    with pytest.raises(ModelError, match="cannot read the GGUF file"):
        converted(tmp_path / "absent.gguf")


def test_converted_once_and_again_after_a_change(tmp_path, cache, monkeypatch):
    path = write_gguf(tmp_path / "mine.gguf", tiny_model())
    folder = converted(path)
    assert read_record(folder)["source"]["path"] == str(path.resolve())
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "convert", lambda *_: pytest.fail("converted twice"))
        assert converted(path) == folder
    other = tiny_model(seed=1)
    write_gguf(path, other)
    assert converted(path) == folder
    assert torch.equal(logits(reload(folder)[0]), logits(other))
    assert [p.name for p in cache.iterdir() if not p.name.startswith(".")] == [folder.name]


def test_failed_conversion_leaves_no_folder(tmp_path, cache):
    path = write_gguf(tmp_path / "bad.gguf", tiny_model(), architecture="nonesuch")
    with pytest.raises(ModelError):
        converted(path)
    assert all(p.suffix == ".lock" for p in cache.iterdir())


def test_quiet_puts_settings_back():
    before = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    with pytest.raises(RuntimeError), quiet():
        assert not chatter.is_progress_bar_enabled()
        raise RuntimeError
    assert (chatter.get_verbosity(), chatter.is_progress_bar_enabled()) == before


def test_types_are_listed_quantised_first():
    assert describe_types({"F32": 9, "Q8_0": 1, "Q4_1": 5}) == "Q4_1, Q8_0, F32"


def test_oracle_layout_differs_from_ours():
    """The permutation in the test's writer does something, so undoing it is being tested."""
    model = tiny_model()
    ours = model.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    theirs = gguf_tensors(model)["blk.0.attn_q.weight"]
    assert not np.array_equal(ours, theirs)
    assert np.array_equal(np.sort(ours, axis=None), np.sort(theirs, axis=None))


# The real models, where they have been fetched.

NEEDLE = "The grass is green. The secret number of Berlin is 48213. The sky is blue. "


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_bundled_model_reads_its_context(name):
    if (folder := model_path(name)) is None:
        pytest.skip(f"{name} is not fetched: run `mnemoscope models fetch {name}`")
    start = time.perf_counter()
    model, tokenizer = reload(folder)
    assert time.perf_counter() - start < 60
    assert tokenizer.tokenize("48213") == list("48213")
    text = "Naïve café: 1,024 snakes_in\tPython?\n  done"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    question = NEEDLE + "What is the secret number of Berlin?"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=16)
    assert "48213" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
    record = json.loads((folder / "mnemoscope.json").read_text())
    assert record["conversion"] == "dequantised to fp32"
    assert record["tied_embeddings"] is model.config.tie_word_embeddings
