"""One contract, three backends: every read and every edit through all of them, numbers compared.

The fast engine is held against the bare model elsewhere (`test_engine`, `test_edits`); here the
libraries' own whole forwards, which share neither cache nor packing nor masks with it, are held
against the engine, so that each is an oracle for the other.
"""

import families
import pytest
import torch
from families import FAMILIES

from interp.backends.brought import under_instrument
from interp.backends.capabilities import EDITS, OPERATIONS, READS, capability_table
from interp.errors import ModelError, SiteError
from interp.loading import Loaded
from interp.sites import PER_HEAD, SITE_KINDS, Edit, Head, Site
from interp.trace import RowRead, SiteRead

LIBRARIES = ("lens", "nnsight")
LACKING = {("lens", "phi3"): {"q", "k"}, ("lens", "gpt_neox"): {"q", "k"}}
"""Families whose bridges show no queries and keys behind the rotary embedding."""
LAYER, HEAD = 1, 2
AT = [26, 14, 20]


def tokens(n, seed=1):
    return torch.randint(3, 120, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


CONTEXT = tokens(26)
SUFFIXES = [tokens(n, n) for n in (5, 7, 3)]
EVERY = tuple(tuple(range(len(s))) for s in SUFFIXES)


def under(hf, backend):
    return under_instrument(Loaded(hf, None, None), hf, backend=backend, check=False, remote=False)


@pytest.fixture(scope="module", params=FAMILIES)
def trio(request):
    hf = families.tiny(request.param)
    return request.param, under(hf, "hf"), {name: under(hf, name) for name in LIBRARIES}


@pytest.fixture(scope="module")
def llamas():
    hf = families.tiny("llama")
    return {name: under(hf, name) for name in ("hf", *LIBRARIES)}


def cannot(backend, family, kind):
    return kind in LACKING.get((backend, family), ())


def values(model):
    generator = torch.Generator().manual_seed(3)
    d_head, d_model = model.spec.d_head, model.spec.d_model
    return torch.randn(d_head, generator=generator), torch.randn(2, d_model, generator=generator)


def all_edits(model):
    """Every operation at every kind of site that takes it: `(name, edit of row 0)`."""
    inner, outer = values(model)
    found = []
    for kind in SITE_KINDS:
        site = Site(kind, LAYER, HEAD if kind in PER_HEAD else None)
        if kind == "resid_mid" and model.anatomy.writers[LAYER] is None:
            continue
        if kind == "pattern":
            rows = [("uniform", {}), ("sink", {}), ("knockout", {"keys": (0, 3, 11, 28)})]
        else:
            value = inner if kind in PER_HEAD else outer
            rows = [("zero", {})]
            rows += [(op, {"value": value}) for op in ("mean", "resample", "replace", "add")]
        found += [(kind, Edit(site, op, positions=(1, 2), rows=(0,), **more)) for op, more in rows]
    return found


def served(family, backend, pairs):
    return [edit for kind, edit in pairs if not cannot(backend, family, kind)]


def test_every_site_reads_the_same(trio):
    family, fast, others = trio
    for name, slow in others.items():
        kinds = [
            k for k in SITE_KINDS
            if k != "pattern" and not cannot(name, family, k)
            and (k != "resid_mid" or fast.anatomy.writers[LAYER] is not None)
        ]  # fmt: skip
        sites = tuple(Site(k, LAYER) for k in kinds)
        sites += tuple(Site(k, LAYER, HEAD) for k in kinds if k in PER_HEAD)
        read = SiteRead(sites, EVERY)
        a, b = (
            m.extend(m.prefill(CONTEXT), SUFFIXES, at=AT, read=[read], logits=EVERY)
            for m in (fast, slow)
        )
        assert torch.allclose(a.logits, b.logits, atol=1e-4)
        assert a.sites.keys() == b.sites.keys()
        for site in sites:
            assert torch.allclose(a.sites[site], b.sites[site], atol=1e-4), (name, site)


def test_every_row_read_is_the_same(trio):
    _, fast, others = trio
    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(15, fast.spec.d_model, generator=generator)
    slots = torch.tensor([0, 5, 13, 14, 19, 27, 30, -1])
    keys = tuple(slots.expand(len(s), -1) for s in SUFFIXES)
    reads = [
        RowRead(EVERY, keys=keys, directions=directions, whole=(Head(LAYER, HEAD), Head(2, 0))),
        RowRead(((0,), (), (-1,)), keys=(keys[0][:1], keys[1][:0], keys[2][:1]), peaks=False),
        RowRead(EVERY, directions=directions, through_final_norm=False),
    ]
    want = fast.extend(fast.prefill(CONTEXT), SUFFIXES, at=AT, read=reads).rows
    for slow in others.values():
        got = slow.extend(slow.prefill(CONTEXT), SUFFIXES, at=AT, read=reads).rows
        for a, b in zip(want, got, strict=True):
            assert torch.equal(a.suffix, b.suffix) and torch.equal(a.position, b.position)
            assert (a.argmax is None) == (b.argmax is None)
            assert a.argmax is None or torch.equal(a.argmax, b.argmax)
            for field in ("top", "at_keys", "toward", "toward_all"):
                x, y = getattr(a, field), getattr(b, field)
                assert (x is None) == (y is None)
                assert x is None or torch.allclose(x, y, atol=1e-4), field
            for head, rows in a.whole.items():
                for x, y in zip(rows, b.whole[head], strict=True):
                    assert torch.allclose(x, y, atol=1e-5)


def test_every_edit_does_the_same(trio):
    family, fast, others = trio
    pairs = all_edits(fast)
    suffix = SUFFIXES[0]
    for name, slow in others.items():
        alone = served(family, name, pairs)
        edits = [Edit(e.site, e.op, e.value, (i + 1,), e.positions, e.keys)
                 for i, e in enumerate(alone)]  # fmt: skip
        rows = [suffix] * (len(edits) + 1)
        every = [range(len(suffix))] * len(rows)
        a, b = (m.extend(m.prefill(CONTEXT), rows, edits=edits, logits=every) for m in (fast, slow))
        assert a.writes == b.writes == (2,) * len(edits)
        want, got = (t.logits.view(len(rows), len(suffix), -1) for t in (a, b))
        for i, edit in enumerate(alone, start=1):
            assert torch.allclose(want[i], got[i], atol=2e-4), (name, edit)
            assert (want[i] - want[0]).abs().max() > 1e-3, f"{edit} has no effect to compare"


def test_what_a_backend_lacks_is_refused_before_the_forward(trio):
    """`LACKING` says which; nothing else may be refused (the tests above)."""
    family, fast, others = trio
    for name, slow in others.items():
        for kind, edit in all_edits(fast):
            if cannot(name, family, kind):
                with pytest.raises(SiteError, match="without backend="):
                    slow.extend(None, [SUFFIXES[0]], edits=[edit])
                with pytest.raises(SiteError, match="without backend="):
                    slow.extend(None, [SUFFIXES[0]], read=[SiteRead((edit.site,), ((0,),))])


def test_edits_of_one_head_at_once_act_in_forward_order(trio):
    """Query, keys, values, cuts, output: each sees what the earlier ones left."""
    family, fast, others = trio
    inner, _ = values(fast)
    where = {"rows": (1,), "positions": (1, 3)}
    site = {kind: Site(kind, LAYER, HEAD) for kind in PER_HEAD}
    edits = [
        Edit(site["q"], "add", inner, **where),
        Edit(site["k"], "replace", -inner, **where),
        Edit(site["v"], "add", 2 * inner, **where),
        Edit(site["pattern"], "knockout", keys=(2, 9, 27), rows=(1,)),
        Edit(site["pattern"], "uniform", rows=(1,), positions=(4,)),
        Edit(site["z"], "add", inner, rows=(1,), positions=(2,)),
    ]
    read = [
        SiteRead((site["z"],), ((1, 2, 3, 4),) * 2),
        RowRead(((1, 4),) * 2, keys=(torch.tensor([[2, 9, 27]] * 2),) * 2),
    ]
    for name, slow in others.items():
        own = [e for e in edits if not cannot(name, family, e.site.kind)]
        a, b = (
            m.extend(m.prefill(CONTEXT), [SUFFIXES[0]] * 2, read=read, edits=own)
            for m in (fast, slow)
        )
        assert torch.allclose(a.sites[site["z"]], b.sites[site["z"]], atol=1e-4)
        assert torch.allclose(a.logits, b.logits, atol=2e-4)
        assert torch.allclose(a.rows[0].at_keys, b.rows[0].at_keys, atol=1e-5)
        assert a.writes == b.writes


def test_edits_of_a_context_stay_with_it(trio):
    """Read with the prefill, cut with `crop` and `at`, kept by `grow`, never on what follows."""
    _, fast, others = trio
    _, outer = values(fast)
    edits = [
        Edit(Site("z", 0, 1), "zero"),
        Edit(Site("resid_pre", LAYER), "add", outer, positions=(3, -2)),
        Edit(Site("pattern", LAYER, HEAD), "knockout", positions=(9, 24), keys=(1, 2)),
    ]
    read = [SiteRead((Site("resid_post", 0),), ((2, 24),))]

    def run(m):
        prefix = m.prefill(CONTEXT, edits=edits, read=read)
        short = m.grow(prefix.crop(22), SUFFIXES[1])
        logits = [m.extend(p, SUFFIXES).logits for p in (prefix, prefix.crop(21), short)]
        logits.append(
            m.extend(prefix, SUFFIXES, at=AT, edits=[Edit(Site("z", 2, 0), "zero")]).logits
        )
        return prefix, short, logits

    want, grown, expected = run(fast)
    plain = fast.extend(fast.prefill(CONTEXT), SUFFIXES).logits
    assert (plain - expected[0]).abs().max() > 1e-2
    for slow in others.values():
        prefix, short, logits = run(slow)
        assert prefix.trace.writes == want.trace.writes
        assert torch.allclose(prefix.logits, want.logits, atol=2e-4)
        assert torch.allclose(short.logits, grown.logits, atol=2e-4)
        site = Site("resid_post", 0)
        assert torch.allclose(prefix.trace.sites[site], want.trace.sites[site], atol=1e-4)
        for a, b in zip(expected, logits, strict=True):
            assert torch.allclose(a, b, atol=2e-4)


def test_generation_is_the_same_under_edits(trio):
    _, fast, others = trio
    edits = [Edit(Site("z", LAYER, HEAD), "zero"), Edit(Site("z", 0, 0), "zero", positions=(8,))]
    prefix = fast.prefill(CONTEXT)
    want = fast.generate(prefix, SUFFIXES, at=AT, max_new_tokens=4, edits=edits)
    for slow in others.values():
        got = slow.generate(slow.prefill(CONTEXT), SUFFIXES, at=AT, max_new_tokens=4, edits=edits)
        assert got == want


@pytest.mark.parametrize("backend", LIBRARIES)
def test_generation_stops_at_a_stop_token(llamas, backend):
    model = llamas[backend]
    prefix = model.prefill(CONTEXT)
    free = model.generate(prefix, SUFFIXES[:1], max_new_tokens=4)[0]
    cut = model.generate(prefix, SUFFIXES[:1], max_new_tokens=4, stop=[free[2]])[0]
    assert cut == free[: free.index(free[2])]


REFUSED = {
    "a layer that is not there": Edit(Site("z", 9, 0), "zero"),
    "a head that is not there": Edit(Site("z", 0, 7), "zero"),
    "a value of another width": Edit(Site("resid_pre", 0), "add", torch.ones(3)),
    "a position outside the suffix": Edit(Site("z", 0, 0), "zero", positions=(50,)),
    "a row that is not there": Edit(Site("z", 0, 0), "zero", rows=(4,)),
    "an edit of nothing": Edit(Site("z", 0, 0), "zero", rows=()),
}


@pytest.mark.parametrize("edit", REFUSED.values(), ids=REFUSED)
def test_bad_edits_raise_alike(llamas, edit):
    said = set()
    for model in llamas.values():
        with pytest.raises(SiteError) as caught:
            model.extend(model.prefill(CONTEXT[:10]), SUFFIXES, edits=[edit])
        said.add(str(caught.value))
    assert len(said) == 1


def test_other_refusals_are_alike(llamas):
    key, pattern = Edit(Site("k", 0, 1), "zero"), Site("pattern", 0, 1)
    for model in llamas.values():
        prefix = model.prefill(CONTEXT)
        with pytest.raises(SiteError, match="shared by heads"):
            model.prefill(CONTEXT, edits=[key])
        with pytest.raises(SiteError, match="shared by heads"):
            model.generate(prefix, SUFFIXES, max_new_tokens=1, edits=[key])
        with pytest.raises(SiteError, match="use RowRead"):
            model.extend(prefix, SUFFIXES[:1], read=[SiteRead((pattern,), ((0,),))])
        with pytest.raises(SiteError, match="no position was asked for"):
            model.extend(prefix, SUFFIXES, read=[RowRead(((), (), ()))])
        with pytest.raises(ModelError, match="made for 256"):
            model.prefill([5] * 257)
        with pytest.raises(SiteError, match="at least one suffix"):
            model.extend(prefix, [])


@pytest.mark.parametrize("backend", LIBRARIES)
def test_gradients_are_refused_with_the_alternative(llamas, backend):
    with pytest.raises(SiteError, match="without backend="):
        llamas[backend].gradients(None, SUFFIXES[0], sites=[], objective=lambda logits, _: 0)


def test_the_table_names_every_read_and_edit():
    columns, rows = capability_table()
    assert len(rows) == len(READS) + len(EDITS) + len(OPERATIONS)
    assert all(len(row) == len(columns) and all(row) for row in rows)
    assert {k for row in EDITS for k in row.kinds} == set(SITE_KINDS)
    assert {k for row in READS for k in row.kinds} >= set(SITE_KINDS) | {"rows", "directions"}
    ops = {op for row in EDITS for op in row.ops}
    assert ops == {"zero", "mean", "resample", "replace", "add", "uniform", "sink", "knockout"}


@pytest.mark.real
@pytest.mark.parametrize("backend", LIBRARIES)
def test_the_real_model_is_the_same_under_every_backend(real, backend):
    text = "The harbour master wrote 4711 on the slate. He went home. On the slate he wrote"
    ids = real.tokenizer(text)["input_ids"]
    context, suffix = ids[:-5], ids[-5:]
    slow = under_instrument(
        Loaded(real.hf, real.tokenizer, real.source), real.hf,
        backend=backend, check=True, remote=False,
    )  # fmt: skip
    where = (tuple(range(5)),)
    width = len(ids)
    unembed = real.hf.get_output_embeddings().weight.detach()
    read = [
        RowRead(where, keys=(torch.arange(width).expand(5, -1),),
                directions=unembed[ids[-5:]].float()),
        SiteRead((Site("q", 17), Site("z", 17), Site("resid_mid", 20)), where),
    ]  # fmt: skip
    edits = [Edit(Site("z", 17, 3), "zero"), Edit(Site("pattern", 18, 6), "uniform")]
    a, b = (
        m.extend(m.prefill(context), [suffix], read=read, edits=edits, logits=where)
        for m in (real, slow)
    )
    assert torch.allclose(a.logits, b.logits, atol=2e-3)
    assert torch.allclose(a.rows[0].at_keys, b.rows[0].at_keys, atol=1e-4)
    assert torch.allclose(a.rows[0].toward_all, b.rows[0].toward_all, atol=1e-3)
    for site, want in a.sites.items():
        assert torch.allclose(want, b.sites[site], atol=5e-3), site


def test_a_scan_and_a_validation_are_the_same_whatever_object_was_brought():
    """A planted model as a bridge and as an nnsight wrapper, under the engine and under each."""
    import worlds
    from nnsight import NNsight

    import interp
    from circuits.retrieval import scan
    from circuits.validation import validate
    from circuits.validation_plan import ValidateSettings
    from interp.backends.lens import boot

    fast, truth = worlds.world("induction_pair")
    options = worlds.MATERIALS.scan | truth.options | {"n_haystacks": 3}
    heads = [*truth.heads("copy"), Head(2, 0)]
    settings = ValidateSettings(
        n_needles=2, length=101, depths=(0.2, 0.8), n_draws=39, curve=(), alone=False, top=2,
        specificity=False, ablations=("knockout",), prompts=tuple(worlds.PROMPTS.items()),
    )  # fmt: skip
    want, wanted = scan(fast, **options), validate(fast, heads, settings)
    bridge = boot(fast.hf, fast.spec)
    brought = [(bridge, None), (bridge, "lens"), (NNsight(fast.hf), "nnsight")]
    for given, backend in brought:
        model = interp.load(given, tokenizer=fast.tokenizer, backend=backend)
        assert model.source.weight_hash == fast.source.weight_hash
        got = scan(model, **options)
        for name in want.values:
            assert torch.allclose(
                torch.tensor(want.values[name]), torch.tensor(got.values[name]), atol=1e-4
            ), name
        if backend is not None:
            found = validate(model, heads, settings)
            for a, b in zip(wanted.findings, found.findings, strict=True):
                assert a.effect.effect == pytest.approx(b.effect.effect, abs=1e-3)
                assert a.effect.control == pytest.approx(b.effect.control, abs=1e-3)
