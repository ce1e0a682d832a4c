"""Loading: the oracle is the model that was saved; every refusal is one line and names a remedy."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaModel,
    T5Config,
)

from interp import reference
from interp.bundled import BUNDLED, model_path
from interp.errors import ModelError, UnknownNameError
from interp.fingerprint import tokenizer_hash, weight_hash
from interp.gguf import quiet
from interp.loading import Source, load_parts
from interp.model_cache import read_record
from interp.reference import resolve
from tests.interp.hub import COMMIT, Hub, serve
from tests.interp.tiny import logits, save_folder, tiny_model, tiny_tokenizer, write_gguf

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
SMOL = "smollm2-135m"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    with quiet():
        save_folder(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A copy of the saved folder to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path, request):
    """Nothing here may go out: the hub's answer is decided by each test."""
    if not request.node.get_closest_marker("real"):
        monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("interp.loading.hub_answers", lambda: pytest.fail("went to the hub"))


def refusal(*args, error=ModelError, **options) -> str:
    with pytest.raises(error) as caught:
        load_parts(*args, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def test_importing_loads_no_heavy_library():
    modules = ["bundled", "gguf", "loading", "reference", "model_cache", "fingerprint"]
    heavy = {"torch", "transformers", "gguf", "numpy", "huggingface_hub", "tokenizers"}
    code = "import sys\n" + "".join(f"import interp.{name}\n" for name in modules)
    code += f"print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# folders and files


@pytest.mark.parametrize("as_text", [True, False])
def test_folder(saved, as_text):
    loaded = load_parts(str(saved) if as_text else saved)
    assert torch.equal(logits(loaded.model), logits(tiny_model()))
    assert loaded.tokenizer("the 121").input_ids == tiny_tokenizer()("the 121").input_ids
    assert not loaded.model.training and loaded.model.dtype == torch.float32
    assert loaded.source == Source(
        kind="folder",
        name="tiny-llama",
        detail=f"local folder {saved}",
        revision=None,
        quantisation=None,
        weight_hash=weight_hash(tiny_model()),
        tokenizer_hash=tokenizer_hash(tiny_tokenizer()),
        reference=str(saved),
    )


def test_gguf_file_says_how_it_was_rounded(tmp_path):
    exact = load_parts(write_gguf(tmp_path / "a.gguf", tiny_model()))
    assert torch.equal(logits(exact.model), logits(tiny_model()))
    assert exact.source.weight_hash == weight_hash(tiny_model())
    rounded = load_parts(str(write_gguf(tmp_path / "b.gguf", tiny_model(), quantise=True)))
    assert (rounded.source.kind, rounded.source.name) == ("gguf", "b.gguf")
    assert rounded.source.quantisation == "Q8_0, F32, dequantised to fp32"
    assert rounded.source.weight_hash != exact.source.weight_hash
    again = load_parts(resolve(tmp_path / "b.gguf").location)  # the converted folder, by its path
    assert again.source.kind == "folder"
    assert again.source.quantisation == rounded.source.quantisation


@pytest.mark.parametrize("name", ["bfloat16", torch.bfloat16])
def test_dtype_is_the_one_asked_for(saved, name):
    model = load_parts(saved, dtype=name).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(
        model.lm_head.weight.float(), tiny_model().lm_head.weight.to(torch.bfloat16).float()
    )


def test_auto_dtype_is_fp32_on_a_cpu_whatever_is_stored(tmp_path):
    tiny_model().to(torch.float16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_parts(tmp_path, device="cpu").model.dtype == torch.float32


def test_stored_quantisation_is_reported():
    from interp.loading import _quantisation

    config = tiny_model().config
    assert _quantisation(config) is None
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert _quantisation(config) == "gptq, 4-bit"
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    assert _quantisation(config) == "bitsandbytes, 8-bit"


def test_tokenizer_from_elsewhere(saved, copy, tmp_path):
    for path in copy.glob("*token*"):
        path.unlink()
    own = tiny_tokenizer()
    assert load_parts(copy, tokenizer=own).tokenizer is own
    borrowed = load_parts(copy, tokenizer=str(saved))
    assert borrowed.source.tokenizer_hash == tokenizer_hash(own)
    message = refusal(copy)
    assert "has no tokenizer" in message and "tokenizer=" in message
    assert "got int" in refusal(copy, tokenizer=3)
    assert str(tmp_path / "no") in refusal(copy, tokenizer=tmp_path / "no")


# refusals of folders and files


def test_folder_without_config(copy):
    (copy / "config.json").unlink()
    assert f"{copy} has no config.json" in refusal(copy)
    (copy / "w.gguf").touch()
    assert f"give the GGUF file itself: {copy / 'w.gguf'}" in refusal(copy)
    (copy / "adapter_config.json").touch()
    assert "adapter; merge it" in refusal(copy)


def test_empty_folder_named_like_a_bundled_model_shadows_it_but_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / SMOL).mkdir()
    assert f"for the bundled model: bundled:{SMOL}" in refusal(SMOL)


def test_what_is_not_there_or_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert "neither a folder nor a .gguf file" in refusal(tmp_path / "notes.txt")
    for absent in (str(tmp_path / "no"), "./no", "a/b/c", "no.gguf"):
        message = refusal(absent)
        assert "not there" in message and SMOL in message


def test_truncated_gguf(tmp_path):
    whole = write_gguf(tmp_path / "w.gguf", tiny_model()).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refusal(tmp_path / "cut.gguf")
    (tmp_path / "text.gguf").write_text("not a model at all")
    assert "not a GGUF file" in refusal(tmp_path / "text.gguf")


@pytest.mark.parametrize(
    ("config", "got"),
    [
        (BertConfig(hidden_size=16, num_attention_heads=2), r"an encoder-only model (bert)"),
        (T5Config(d_model=16), "an encoder-decoder (t5)"),
    ],
)
def test_encoders_are_refused_before_their_weights_are_read(tmp_path, config, got):
    config.save_pretrained(tmp_path)
    assert refusal(tmp_path) == f"{tmp_path.name}: decoder-only expected, got {got}"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "nonesuch"}', '"llama"'])
def test_config_that_says_nothing(copy, text):
    (copy / "config.json").write_text(text)
    assert "cannot load its config" in refusal(copy)


def test_code_of_a_folder_is_not_run(copy, tmp_path):
    marker = tmp_path / "ran"
    (copy / "own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (copy / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    assert "cannot load its config" in refusal(copy)
    assert not marker.exists()


def test_damaged_weights(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    assert "cannot load its weights" in refusal(copy)
    weights.unlink()
    assert "cannot load its weights" in refusal(copy)


def test_missing_weights_are_not_filled_with_noise(copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    message = refusal(copy)
    assert "1 weights" in message and "model.layers.1.mlp.up_proj.weight" in message


def test_tied_head_that_is_not_stored_is_not_missing(copy):
    from safetensors.torch import load_file

    assert "lm_head.weight" not in load_file(copy / "model.safetensors")
    model = load_parts(copy).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_damaged_tokenizer(copy):
    (copy / "tokenizer.json").write_text('{"version": "1.0"}')
    assert "cannot load its tokenizer" in refusal(copy)


def test_settings_that_mean_nothing(saved):
    assert "unknown dtype 'float33'" in refusal(saved, dtype="float33")
    assert "unknown dtype 'nn'" in refusal(saved, dtype="nn")
    assert "unknown device 'gpu'" in refusal(saved, device="gpu")
    assert "not both" in refusal(saved, device="cpu", device_map="auto")
    assert "revision='v1' applies to hub names" in refusal(saved, revision="v1")
    if not torch.cuda.is_available():
        assert "no CUDA GPU; use device='cpu'" in refusal(saved, device="cuda")


# names


def test_near_names_are_suggested_not_loaded():
    message = refusal("smollm2-135", error=UnknownNameError)
    assert f"did you mean {SMOL}" in message and "hub:smollm2-135" in message
    assert "known: " in refusal("what is this?", error=UnknownNameError)
    assert f"did you mean {SMOL}" in refusal("bundled:smollm2", error=UnknownNameError)


def test_names_mean_one_thing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reference, "model_path", lambda name: tmp_path / name)
    row = BUNDLED[SMOL]
    assert resolve(SMOL) == resolve(f"bundled:{SMOL}")
    place = resolve(SMOL)
    assert (place.kind, place.location) == ("bundled", str(tmp_path / SMOL))
    assert place.quantisation.startswith("4-bit") and row.hub_name in place.detail
    hub = resolve(f"hub:{SMOL}")
    assert (hub.kind, hub.location, hub.quantisation) == ("hub", row.hub_name, None)
    assert resolve("org/name").kind == resolve("hub:gpt2").kind == resolve("gpt2").kind == "hub"
    assert resolve("gpt2").guessed and not resolve("hub:gpt2").guessed
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve("org/name").kind == "folder"


def test_bundled_model_that_is_absent_is_fetched(saved, monkeypatch):
    fetched: list[str] = []
    monkeypatch.setattr(reference, "fetch", lambda name: fetched.append(name) or saved)
    loaded = load_parts(SMOL)
    assert fetched == [SMOL] and loaded.source.kind == "bundled"
    assert "4-bit" in loaded.source.quantisation and "4-bit" in loaded.source.detail


# live models


def test_live_model_is_left_as_it_was():
    model, tokenizer = tiny_model().train(), tiny_tokenizer()
    config, weights = model.config.to_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    loaded = load_parts(model, tokenizer=tokenizer)
    assert loaded.model is model and loaded.tokenizer is tokenizer
    assert model.training and model.config.to_dict() == config
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert loaded.source.kind == "live" and "LlamaForCausalLM" in loaded.source.detail


def test_live_refusals():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    assert "live LlamaForCausalLM needs tokenizer=" in refusal(model)
    assert "stays as it is" in refusal(model, tokenizer=tokenizer, dtype="bfloat16")
    assert "stays as it is" in refusal(model, tokenizer=tokenizer, device="cpu")
    assert "no language-model head" in refusal(LlamaModel(model.config), tokenizer=tokenizer)
    small = BertConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8
    )
    assert "encoder-only" in refusal(BertModel(small), tokenizer=tokenizer)
    assert "got Linear" in refusal(torch.nn.Linear(2, 2), tokenizer=tokenizer)
    assert "got NoneType" in refusal(None)


# fingerprints


def test_weight_hash_does_not_depend_on_where_weights_came_from(saved, tmp_path):
    live = tiny_model()
    expected = weight_hash(live)
    assert load_parts(saved).source.weight_hash == expected
    live.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert load_parts(tmp_path / "shards").source.weight_hash == expected
    half = tiny_model().to(torch.bfloat16)
    assert weight_hash(half) == weight_hash(half.float()) != expected


@pytest.mark.parametrize("name", [name for name, _ in tiny_model().named_parameters()])
def test_weight_hash_sees_a_change_in_each_tensor(name):
    model = tiny_model()
    before = weight_hash(model)
    with torch.no_grad():
        model.get_parameter(name).mul_(1.001)
    assert weight_hash(model) != before


def test_weight_hash_sees_one_zeroed_head_of_a_large_tensor():
    def projection(zeroed):
        weight = torch.nn.Linear(576, 576, bias=False)
        with torch.no_grad():
            weight.weight.fill_(0.5)
            if zeroed is not None:
                weight.weight[:, zeroed * 64 : zeroed * 64 + 64] = 0
        return weight_hash(weight)

    assert len({projection(zeroed) for zeroed in [None, *range(9)]}) == 10


def test_weight_hash_of_offloaded_weights_is_none():
    assert weight_hash(torch.nn.Linear(2, 2, device="meta")) is None


def test_tokenizer_hash_sees_rules_and_not_use():
    from tokenizers import pre_tokenizers

    tokenizer, expected = tiny_tokenizer(), tokenizer_hash(tiny_tokenizer())
    tokenizer.pad_token = None
    tokenizer.backend_tokenizer.enable_padding(pad_token='"added_tokens":', length=9)
    tokenizer.backend_tokenizer.enable_truncation(5)
    assert tokenizer_hash(tokenizer) == expected
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Digits()
    assert tokenizer_hash(tokenizer) != expected
    for attribute, value in (("chat_template", "x"), ("eos_token", "the"), ("bos_token", None)):
        changed = tiny_tokenizer()
        setattr(changed, attribute, value)
        assert tokenizer_hash(changed) != expected, attribute
    changed = tiny_tokenizer()
    changed.add_tokens(["needle"])
    assert tokenizer_hash(changed) != expected


def test_tokenizer_hash_survives_saving(saved):
    assert load_parts(saved).source.tokenizer_hash == tokenizer_hash(tiny_tokenizer())


# the hub, for real: a child process whose hub is a server on the loopback

CHILD = """
import json, sys, time, torch
torch.set_num_threads(1)
from interp.errors import MnemoscopeError
from interp.loading import load_parts
from tests.interp.tiny import logits
import transformers, transformers.models.llama.modeling_llama  # not what is being timed
for ref, options in json.loads(sys.argv[1]):
    start = time.perf_counter()
    try:
        loaded = load_parts(ref, **options)
    except MnemoscopeError as error:
        told = {"error": str(error), "kind": type(error).__name__}
    else:
        told = {"source": vars(loaded.source), "logits": logits(loaded.model).flatten().tolist()}
    print(json.dumps(told | {"seconds": time.perf_counter() - start}))
"""


def in_child(home: Path, endpoint: str, *asks: tuple[str, dict]) -> list[dict]:
    """What a new process says that loads each (reference, options) from the hub at `endpoint`."""
    skipped = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_")
    env = {k: v for k, v in os.environ.items() if not k.upper().startswith(skipped)}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"NO_PROXY": "127.0.0.1", "MNEMOSCOPE_CACHE": str(home / "none")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD, json.dumps(asks)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # a library logs; it does not print
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(asks)
    assert not any("\n" in one.get("error", "") for one in told)
    return told


@pytest.fixture(scope="module")
def hub(saved):
    with serve(Hub({"org/tiny": saved}, gated=("org/gated",))) as hub:
        yield hub


@pytest.fixture(scope="module")
def closed_port():
    """The address of a port that refuses: bound, so that nobody takes it, and not listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def test_hub_name(hub, tmp_path):
    hub.asked.clear()
    asks = [{}, {"revision": "v1"}, {"revision": COMMIT}]
    for told in in_child(tmp_path, hub.endpoint, *(("org/tiny", options) for options in asks)):
        source = told["source"]
        assert (source["kind"], source["name"]) == ("hub", "org/tiny")
        assert source["revision"] == COMMIT and COMMIT in source["detail"]
        assert source["weight_hash"] == weight_hash(tiny_model())
        assert source["tokenizer_hash"] == tokenizer_hash(tiny_tokenizer())
        assert told["logits"] == logits(tiny_model()).flatten().tolist()
    weights = {line.split("/")[-2] for line in hub.asked if line.endswith("model.safetensors")}
    assert weights == {COMMIT}  # read at the commit of the config, whatever the branch does


def test_hub_refusals(hub, tmp_path):
    asks = [("org/missing", {}), ("org/tiny", {"revision": "v9"}), ("org/gated", {}), ("gtp", {})]
    missing, revision, gated, bare = in_child(tmp_path, hub.endpoint, *asks)
    assert missing["kind"] == "ModelError"
    assert missing["error"].startswith("hub repository org/missing: not found on the hub")
    assert revision["error"] == "hub repository org/tiny: it has no revision 'v9'"
    assert "hub repository org/gated: it is gated" in gated["error"]
    assert bare["kind"] == "UnknownNameError"
    assert "unknown model 'gtp'" in bare["error"] and SMOL in bare["error"]


def check_unreachable(told: dict, name: str, bundled: str | None) -> None:
    assert told["kind"] == "ModelError" and told["seconds"] < 20
    assert f"hub repository {name}: the hub cannot be reached" in told["error"]
    if bundled is None:
        assert "bundled" not in told["error"]
    else:
        quantisation = BUNDLED[bundled].quantisation
        assert "4-" in quantisation
        assert f"bundled copy ({quantisation}) is {bundled!r}" in told["error"]


def test_unreachable_hub_names_the_bundled_copy(closed_port, tmp_path):
    names = {row.hub_name: row.name for row in BUNDLED.values()} | {"org/tiny": None}
    told = in_child(tmp_path, closed_port, *((name, {}) for name in names))
    for one, (name, copy) in zip(told, names.items(), strict=True):
        check_unreachable(one, name, copy)


def test_hub_that_never_answers(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        name = BUNDLED[SMOL].hub_name
        check_unreachable(*in_child(tmp_path, endpoint, (name, {})), name, SMOL)


def test_what_the_hub_gave_once_loads_without_it(hub, closed_port, tmp_path):
    (first,) = in_child(tmp_path, hub.endpoint, ("org/tiny", {}))
    (second,) = in_child(tmp_path, closed_port, ("org/tiny", {}))
    assert second["source"] == first["source"] and second["logits"] == first["logits"]
    assert second["seconds"] < 20


# the bundled models


@pytest.fixture(scope="module", params=sorted(BUNDLED))
def real(request):
    if model_path(request.param) is None:
        pytest.skip(f"{request.param} is not fetched: run `mnemoscope models fetch`")
    return load_parts(request.param, device="cpu")


@pytest.mark.real
def test_bundled_model_loads_with_its_provenance(real):
    row = BUNDLED[real.source.name]
    assert real.source.kind == "bundled" and real.source.revision is None
    assert real.source.quantisation == f"{row.quantisation}, dequantised to fp32"
    assert row.hub_name in real.source.detail
    assert read_record(model_path(row.name))["parameters"] == real.model.num_parameters()
    with quiet():
        plain = AutoModelForCausalLM.from_pretrained(model_path(row.name), dtype=torch.float32)
    tokens = torch.tensor([real.tokenizer("The capital of France is").input_ids])
    with torch.no_grad():
        ours = real.model(tokens).logits
        assert torch.equal(ours, plain.eval()(tokens).logits)
    assert real.tokenizer.decode(ours[0, -1].argmax()).strip() == "Paris"


@pytest.mark.real
def test_bundled_tokenizer_splits_digits(real):
    assert real.tokenizer.tokenize("90210") == list("90210")


@pytest.mark.real
def test_bundled_model_chats(real):
    prompt = real.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France? Answer in one word."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = real.model.generate(**prompt, do_sample=False, max_new_tokens=12)
    answer = real.tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
