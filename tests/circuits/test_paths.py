"""Path patching, direct effects, patches and curves against whole forwards of the bare model."""

import bare
import families
import numpy as np
import pandas as pd
import pytest
import torch
import worlds

from circuits import paths
from circuits.ablations import ABLATIONS
from circuits.attribution import exact, head_sites, rank_agreement, screen
from circuits.direct import direct_effects
from circuits.faithfulness import circuits_of, run_circuits, sizes
from circuits.faithfulness_curves import areas, curves
from circuits.interventions import forced_metrics, material, rebased, reference_means
from circuits.patch_prompts import Patchable, activations, class_means, mean_rows
from circuits.paths import CHANNELS, Edge, Sender
from interp.backends.hf import HFModel
from interp.errors import ResultError
from interp.sites import Edit, Head, Site
from probes.cases import Case
from probes.grid import Trial
from probes.spreads import Spread, spreads

N_BEFORE = 9


def question(model, seed=0):
    """A made-up question for a random model: a spread whose twin differs in one token."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 120, (N_BEFORE + 16,), generator=g).tolist()
    before, tokens = tuple(ids[:N_BEFORE]), tuple(ids[N_BEFORE:])
    twin = (tokens[0], 3 + (tokens[1] + 40) % 100, *tokens[2:])
    classes = ("needle", "value", "context", "context", *["question"] * 8, *["answer"] * 4)
    trial = Trial(0, f"n{seed}", "fact", "en", "x", N_BEFORE + 4, 0.5, 0.5, 0, (), range(0),
                  (7, 8, 9, 10))  # fmt: skip
    case = Case(trial, tokens[4:], range(8, 12), (7, 8, 30, 10), 2, True, classes[4:],
                range(N_BEFORE, N_BEFORE + 2), range(N_BEFORE + 1, N_BEFORE + 2))  # fmt: skip
    spread = Spread(case, before, tokens, twin, classes, range(12, 16))
    prefix = model.prefill(before)
    found = [
        forced_metrics(model.extend(prefix, [t], logits=[spread.rows]).logits, case)
        for t in (tokens, twin)
    ]
    return Patchable(spread, prefix, *found)


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt_neox", "olmo2", "gpt2"])
def pair(request):
    hf = families.tiny(request.param)
    model = HFModel(hf)
    return model, hf, question(model)


def whole(p, *, twin=False):
    return [*p.spread.before, *(p.spread.twin if twin else p.spread.tokens)]


def places(p):
    return range(N_BEFORE, N_BEFORE + len(p.spread.tokens))


def metrics(hf, p, changes, *, twin=False, hooks=()):
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        logits = bare.run(hf, whole(p, twin=twin), changes)
    finally:
        for handle in handles:
            handle.remove()
    return forced_metrics(logits[[N_BEFORE + r for r in p.spread.rows]], p.spread.case)


def recorder(module):
    """Every forward's output of a module, as a list that fills."""
    kept = []

    def hook(_m, _a, out):
        kept.append((out[0] if isinstance(out, tuple) else out).clone())

    return kept, module.register_forward_hook(hook)


def hold(value, first):
    """A hook that puts clean outputs back from a position on."""

    def hook(_m, _a, out):
        x = (out[0] if isinstance(out, tuple) else out).clone()
        x[:, first:] = value[:, first:]
        return (x, *out[1:]) if isinstance(out, tuple) else x

    return hook


def clean_outputs(model, hf, p):
    """Outputs of every attention and feed-forward module in a clean whole forward."""
    modules = [*model.anatomy.attention, *model.anatomy.mlp]
    kept = [recorder(m) for m in modules]
    bare.run(hf, whole(p))
    for _, handle in kept:
        handle.remove()
    return {m: values[0] for m, (values, _) in zip(modules, kept, strict=True)}


def test_an_edge_is_two_whole_forwards_done_by_hand(pair):
    model, hf, p = pair
    means = class_means(model, [question(model, s) for s in (1, 2)], paths.reference_sites(model))
    receiver, at = Head(2, 3), list(places(p))
    senders = [Sender(0, 1), Sender(1, 2), Sender(0), Sender(1)]
    edges = [Edge(s, receiver, c) for s in senders for c in CHANNELS]
    ours = paths.path_effects(model, p, edges, means)
    clean = clean_outputs(model, hf, p)
    for sender in senders:
        seen = {}

        def record(stage, *parts, seen=seen):
            if stage == "inputs":
                seen.update(zip("qkv", (x[receiver.head].clone() for x in parts), strict=True))

        value = mean_rows(
            means[Site("mlp_out" if sender.head is None else "z", sender.layer)], p.spread.classes
        )

        def ablate(stage, *parts, sender=sender, value=value):
            if stage == "z" and sender.head is not None:
                parts[0][sender.head, at] = value[:, sender.head]

        hooks = [
            (model.anatomy.attention[i], hold(clean[model.anatomy.attention[i]], N_BEFORE))
            for i in range(sender.layer + 1, receiver.layer)
        ]
        if sender.head is None:
            full = torch.zeros(1, N_BEFORE + len(value), value.shape[1])
            full[0, N_BEFORE:] = value
            hooks.append((model.anatomy.mlp[sender.layer], hold(full, N_BEFORE)))
        metrics(hf, p, {sender.layer: ablate, receiver.layer: record}, hooks=hooks)
        for channel in CHANNELS:

            def give(stage, *parts, channel=channel, seen=seen):
                if stage == "inputs":
                    x = dict(zip("qkv", parts, strict=True))[channel]
                    x[receiver.head, at] = seen[channel][at]

            expected = metrics(hf, p, {receiver.layer: give}) - p.original
            got = ours[edges.index(Edge(sender, receiver, channel))]
            assert np.allclose(got[:2], expected[:2], atol=2e-3), (sender, channel)


def test_total_and_direct_effects_of_nodes(pair):
    model, hf, p = pair
    means = class_means(model, [question(model, 1)], paths.reference_sites(model))
    nodes, at = [Sender(0, 1), Sender(1, 3), Sender(1)], list(places(p))
    total, direct = paths.node_effects(model, p, nodes, means)
    clean = clean_outputs(model, hf, p)
    for i, node in enumerate(nodes):
        value = mean_rows(
            means[Site("mlp_out" if node.head is None else "z", node.layer)], p.spread.classes
        )

        def ablate(stage, *parts, node=node, value=value):
            if stage == "z" and node.head is not None:
                parts[0][node.head, at] = value[:, node.head]

        own = []
        if node.head is None:
            full = torch.zeros(1, N_BEFORE + len(value), value.shape[1])
            full[0, N_BEFORE:] = value
            own = [(model.anatomy.mlp[node.layer], hold(full, N_BEFORE))]
        later = [model.anatomy.attention[j] for j in range(node.layer + 1, 3)]
        later += [model.anatomy.mlp[j] for j in range(node.layer + (node.head is None), 3)]
        frozen = [(m, hold(clean[m], N_BEFORE)) for m in later]
        expected = metrics(hf, p, {node.layer: ablate}, hooks=own) - p.original
        assert np.allclose(total[i][:2], expected[:2], atol=2e-3)
        expected = metrics(hf, p, {node.layer: ablate}, hooks=[*own, *frozen]) - p.original
        assert np.allclose(direct[i][:2], expected[:2], atol=2e-3)


def test_exact_patches_equal_whole_forwards_and_the_screen_is_their_first_order(pair):
    model, hf, p = pair
    heads = [Head(0, 1), Head(1, 2), Head(2, 0)]
    ours = exact(model, p, heads)
    twin = bare.outputs(hf, whole(p, twin=True), 3)
    for head, got in zip(heads, ours, strict=True):

        def put(stage, *parts, head=head):
            if stage == "z":
                parts[0][head.head, list(places(p))] = twin[head.layer][head.head, list(places(p))]

        expected = metrics(hf, p, {head.layer: put}) - p.original
        assert np.allclose(got[:2], expected[:2], atol=2e-3)
    # a small step along the same change: the screen is exact there
    sites = head_sites(model)
    own, other = (activations(model, p, sites, twin=t) for t in (False, True))
    step = 1e-3
    near = {s: own[s] + step * (other[s] - own[s]) for s in sites}
    guess = sum(screen(model, p, instead=near).values()) / step
    assert torch.allclose(guess, sum(screen(model, p).values()), rtol=1e-2, atol=1e-2)
    for head in heads:
        site = Site("z", head.layer, head.head)
        value = near[Site("z", head.layer)][:, head.head]
        edit = Edit(site, "replace", value, positions=tuple(range(len(value))))
        logits = model.extend(
            p.prefix, [p.spread.tokens], edits=[edit], logits=[p.spread.rows]
        ).logits
        slope = (forced_metrics(logits, p.spread.case)[1] - p.original[1]) / step
        assert guess[head.layer, head.head] == pytest.approx(slope, rel=0.1, abs=0.05)


def test_circuits_hold_their_heads_and_take_the_twins_for_the_rest(pair):
    model, hf, p = pair
    pool = model.spec.heads()
    chosen = circuits_of({"all": pool[::-1]}, pool, n_random=2, seed=0)
    rows = run_circuits(model, p, chosen)
    twin = bare.outputs(hf, whole(p, twin=True), 3)

    def replaced(heads):
        def change(layer):
            def put(stage, *parts):
                if stage == "z":
                    for h in heads:
                        if h.layer == layer:
                            at = list(places(p))
                            parts[0][h.head, at] = twin[layer][h.head, at]

            return put

        return metrics(hf, p, {layer: change(layer) for layer in range(3)})[1]

    for (_, _, heads), row in list(zip(chosen, rows, strict=True))[:6]:
        outside = [h for h in pool if h not in heads]
        assert row["circuit"] == pytest.approx(replaced(outside), abs=3e-3)
        assert row["complement"] == pytest.approx(replaced(heads), abs=3e-3)
    everything = next(r for r in rows if r["size"] == len(pool))
    assert everything["circuit"] == pytest.approx(p.original[1], abs=3e-3)


def test_direct_effects_at_the_answer_rows():
    """The planted models have no feed-forward part: by hand, z through W_O to the logits."""
    model, truth = worlds.world("backup")
    scene = worlds.scene("backup")
    case = scene.cases[0]
    prefix, ready = rebased(model, model.prefill(scene.context.tokens), case, "decode")
    heads = [*truth.heads("copy"), *truth.heads("backup"), Head(0, 0)]
    found = direct_effects(
        model, prefix, ready, heads, how=ABLATIONS["zero"],
        m=material(ready, means=reference_means(model, [scene])),
    )  # fmt: skip
    n = case.trial.length
    tokens = [*scene.context.tokens[:n], *case.suffix]
    z = bare.outputs(model.hf, tokens, 3)
    place, body = n + case.rows[case.differs], model.hf.model
    kept, handle = recorder(body.layers[-1])
    bare.run(model.hf, tokens)
    handle.remove()
    resid = kept[0][0, place]
    unembed = model.hf.lm_head.weight.detach()
    direction = unembed[case.answer[case.differs]] - unembed[case.other[case.differs]]
    for head, row in zip(heads, found, strict=True):
        d = model.spec.d_head
        w = body.layers[head.layer].self_attn.o_proj.weight[:, head.head * d : (head.head + 1) * d]
        lost = (w @ z[head.layer][head.head, place]).detach()
        with torch.no_grad():
            after, before = (body.norm(x[None])[0] @ direction for x in (resid - lost, resid))
        assert row["direct_diff"] == pytest.approx(float(after - before), abs=1e-3)
        scale = resid.pow(2).mean().sqrt()
        frozen = -(lost * body.norm.weight.detach()) @ direction / scale
        assert row["direct_diff_frozen"] == pytest.approx(float(frozen), abs=1e-2)
    copy, backup, _ = found
    assert copy["direct"] < -1 and abs(copy["total"]) < 0.2 and abs(backup["direct"]) < 0.2


def test_the_planted_induction_pair_is_found_through_the_keys():
    model, truth = worlds.world("induction_pair")
    scene = worlds.scene("induction_pair")
    questions = []
    for s in spreads([scene]):
        prefix = model.prefill(s.before)
        both = model.extend(prefix, [s.tokens, s.twin], logits=[s.rows] * 2).logits
        first, second = (forced_metrics(x, s.case) for x in both.split(len(s.rows)))
        questions.append(Patchable(s, prefix, first, second))
    # other needles have other key words
    means = class_means(model, questions[1:], paths.reference_sites(model))
    (previous,), (copy,) = truth.heads("previous"), truth.heads("copy")
    sender, p = Sender(previous.layer, previous.head), questions[0]
    guess = paths.screen_paths(model, p, [copy], means)
    heads = {c: {s: x for s, x in g.items() if s.head is not None} for c, g in guess.items()}
    assert max(heads["k"], key=lambda s: abs(heads["k"][s])) == sender
    edges = [Edge(sender, copy, c) for c in CHANNELS]
    by_channel = dict(zip(CHANNELS, paths.path_effects(model, p, edges, means)[:, 0], strict=True))
    assert by_channel["k"] < -1
    assert abs(by_channel["q"]) < 0.2 and abs(by_channel["v"]) < 0.2
    rows = run_circuits(model, p, [("true", 2, (previous, copy)), ("copy", 1, (copy,))])
    gap = p.original[1] - p.twin[1]
    assert (rows[0]["circuit"] - p.twin[1]) / gap > 0.9


def test_curves_and_areas_are_the_formula():
    assert sizes(270) == [1, 3, 5, 14, 27, 54, 135, 270]
    rows = pd.DataFrame(
        [
            {"needle": n, "original": 4.0, "twin": 0.0, "ranking": r, "size": k, "of": 10,
             "circuit": c, "complement": 4 - c}
            for n in ("a", "b")
            for r, k, c in (("x", 5, 3.0), ("x", 10, 4.0), ("random", 5, 1.0), ("random", 5, 0.0))
        ]
    )  # fmt: skip
    curve = curves(rows)
    by = {(r.ranking, r.size): r for r in curve.itertuples(index=False)}
    assert by["x", 5].faithfulness == 0.75 and by["x", 5].completeness == 0.25
    assert by["random", 5].faithfulness == 0.125 and by["random", 5].draws == 2
    found = areas(curve)
    assert found["x"]["CPR"] == pytest.approx(0.5 * 0.5 * 0.75 + 0.5 * (0.75 + 1) / 2)
    assert found["x"]["CMD"] == pytest.approx(1 - found["x"]["CPR"])
    assert found["random"]["CPR"] == pytest.approx(0.5 * 0.125 / 2 + 0.5 * (0.125 + 1) / 2)


def test_rank_agreement():
    assert rank_agreement([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert rank_agreement([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(ResultError, match="3 heads"):
        rank_agreement([1, 2], [1, 2])
