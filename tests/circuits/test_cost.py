"""The cost model against torch's own counting of operations, real tensors, and counting by hand."""

import pytest
import torch
from families import tiny
from torch.utils.flop_counter import FlopCounterMode

from circuits import cost
from circuits.cost import (
    Forward,
    Suffix,
    extend,
    generate,
    kv_bytes,
    operations,
    prefill,
    sizes_of,
    total,
)
from circuits.cost_limits import ROW_BLOCK, Spread, memory, working_bytes
from circuits.cost_machine import Machine, measure_machine
from interp.backends.hf import CHUNK, PACK, HFModel
from interp.backends.session import ROW_BUDGET
from interp.errors import PromptError
from interp.trace import RowRead

FAMILIES = ("llama", "gpt2", "mistral")


def counted(work):
    """Operations that torch counts, every kernel replaced by plain products."""
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        work()
    return counter.get_total_flops()


def told(sizes, work):
    return operations(sizes, total(sizes, work))


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_of_suffixes_behind_a_cache_are_those_that_torch_counts(family):
    model = HFModel(tiny(family))
    sizes = sizes_of(model)
    prefix = model.prefill(list(range(1, 41)))
    words = [[(3 * i + 7 * k) % 100 for i in range(9)] for k in range(4)]
    for logits in (1, 5):
        wanted = [range(9 - logits, 9)] * 4
        found = counted(lambda wanted=wanted: model.extend(prefix, words, logits=wanted))
        expected = told(sizes, extend(sizes, [Suffix(9, 40, logits=logits)] * 4))
        assert expected == pytest.approx(found, rel=0.03)


def test_of_a_mixture_a_token_meets_its_own_experts_alone():
    """Counted by hand: two of four experts, each two matrices for the gate and one back."""
    sizes = sizes_of(HFModel(tiny("mixtral")))
    attention, router, expert = 2 * 32 * 32 + 2 * 32 * 16, 4 * 32, 3 * 32 * 48
    assert sizes.layer_weights == attention + router + 2 * expert


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefill_costs_the_pairs_that_are_not_masked(family):
    """Token by token behind a cache no pair is masked, so torch counts just those of a triangle."""
    model, n = HFModel(tiny(family)), 48
    sizes = sizes_of(model)
    tokens = torch.arange(1, n + 1)[None]

    def one_by_one():
        cache = None
        with torch.no_grad():
            for i in range(n):
                out = model.hf(tokens[:, i : i + 1], past_key_values=cache, logits_to_keep=1)
                cache = out.past_key_values

    found = counted(one_by_one) - (n - 1) * 2 * sizes.d_model * sizes.d_vocab
    whole = Forward(n, logits=1, plain=True).amounts(sizes)
    if sizes.masked_layers:  # the triangle is what a layer without a window would take
        assert whole["causal"] == 0
        assert whole["masked"] == 4 * 3 * sizes.n_heads * sizes.d_head * n * n
        return
    assert operations(sizes, whole) == pytest.approx(found, rel=0.03)


def test_rows_that_are_read_add_one_product_of_vectors_for_each_key():
    model = HFModel(tiny("llama"))
    sizes, words = sizes_of(model), [[5, 6, 7, 8]]
    prefix = model.prefill(list(range(1, 31)))
    read = RowRead(((1, 2, 3),))
    bare = counted(lambda: model.extend(prefix, words))
    found = counted(lambda: model.extend(prefix, words, read=[read])) - bare
    more = told(sizes, [Forward(4, 30, rows=3)]) - told(sizes, [Forward(4, 30)])
    assert more == found == 2 * 3 * 4 * 12 * 3 * 34


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_take_what_the_tensors_of_a_prefix_take(family):
    model = HFModel(tiny(family))
    prefix = model.prefill(list(range(1, 61)))
    assert kv_bytes(sizes_of(model), 60) == prefix.nbytes


def test_forwards_and_tokens_are_those_that_the_engine_runs():
    model = HFModel(tiny("llama"))
    sizes, seen = sizes_of(model), []
    hook = model.hf.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    prefix = model.prefill(list(range(1, 101)))
    words = [[(3 * i + 7 * k) % 100 for i in range(60)] for k in range(20)]
    model.extend(prefix, words, at=[50 + i for i in range(20)])
    expected = [*prefill(100), *extend(sizes, [Suffix(60, 50 + i) for i in range(20)])]
    assert [one.n_new for one in expected] == seen
    seen.clear()
    model.generate(prefix, words[:3], max_new_tokens=5)
    expected = generate(sizes, [Suffix(60, 100)] * 3, 5)
    assert sum(one.n_new * one.times for one in expected) == sum(seen)
    assert sum(one.times for one in expected) == len(seen)
    hook.remove()


def test_the_model_knows_the_engines_own_limits():
    assert (CHUNK, PACK, ROW_BUDGET["cpu"]) == (cost.CHUNK, cost.PACK, ROW_BLOCK)


def test_a_long_prefill_is_cut_and_only_its_first_chunk_is_plain():
    found = prefill(CHUNK + 100)
    assert [(f.n_new, f.n_before, f.plain) for f in found] == [
        (CHUNK, 0, True),
        (100, CHUNK, False),
    ]
    assert sum(f.logits for f in found) == 1


def test_shared_rows_begin_at_their_lowest_edit_and_their_stem_runs_once():
    sizes = sizes_of(HFModel(tiny("llama")))
    rows = [Suffix(10, 20, first=2)] * 4
    upper, stem = extend(sizes, rows, shared=True)
    assert (upper.n_new, upper.layers) == (40, 1) and (stem.n_new, stem.layers) == (10, 2)
    whole = extend(sizes, rows)
    assert told(sizes, [upper, stem]) < told(sizes, whole)
    assert len(extend(sizes, [Suffix(PACK, 20)] * 3)) == 3


def test_memory_grows_with_what_is_held():
    sizes = sizes_of(HFModel(tiny("llama")))
    small = memory(sizes, 100, [Forward(100, plain=True)])
    large = memory(sizes, 200, [Forward(100, plain=True), Forward(100, 200)])
    assert large.cached == 2 * small.cached and large.working > small.working
    assert small.weights == sum(p.nbytes for p in tiny("llama").parameters())
    # logits in float32, and a copy
    assert working_bytes(sizes, Forward(1, 1, logits=1000)) == 2 * 4 * 1000 * 120
    # the logits of all packs of a call are held until the last one has run
    packs = extend(sizes, [Suffix(PACK, 20, logits=5)] * 3)
    assert [p.gathered for p in packs] == [15] * 3
    more = working_bytes(sizes, packs[0]) - working_bytes(
        sizes, extend(sizes, [Suffix(PACK, 20)])[0]
    )
    assert more == 4 * (15 - 1) * 120


def test_a_spread_is_the_busiest_worker_and_what_is_done_alone():
    spread = Spread(((3.0, 3.0, 2.0), (4.0,)), serial=1.0)
    assert [spread.seconds(n) for n in (1, 2, 3, 8)] == [13.0, 10.0, 8.0, 8.0]
    with pytest.raises(PromptError, match="0 workers"):
        spread.seconds(0)


def test_time_is_the_sum_over_terms():
    sizes = sizes_of(HFModel(tiny("llama")))
    amounts = total(sizes, [Forward(40, 20, logits=2, rows=3)])
    machine = Machine(dict.fromkeys(amounts, 2.0), "made up")
    assert machine.seconds(amounts) == pytest.approx(sum(amounts.values()) / 2)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_machine_is_timed_on_any_model(family):
    model = HFModel(tiny(family))
    machine = measure_machine(model, repeats=1)
    assert all(v > 0 for v in machine.speed.values()) and machine.about == "cpu, 1 threads"
