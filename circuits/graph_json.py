"""Traces of prompts in the JSON of attribution graphs, as circuit-tracer and Neuronpedia show them.

Nodes: tokens (`E_{vocab}_{pos}`), features (`{layer}_{feature}_{pos}`), the dictionary's error at a
position, the logit (`{n_layers + 1}_{vocab}_{pos}`). Errors are `{layer}_-1_{pos}`, as newer
versions of circuit-tracer write them: no feature has a negative number, whereas the older
`0_{layer}_{pos}` is also the name of a feature of layer 0.

Links, all linear in one forward: feature -> logit and error -> logit: gradient times activation;
feature at i -> the same at j: what the listed heads bring from i; token -> feature: the rest of its
activation. So the links into a feature add up to its activation. Ids and numbers of a file depend
on nothing but the trace: no salted hash, no clock.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuits.prompt_trace import records
from interp.errors import ResultError
from interp.store import cannot_write

if TYPE_CHECKING:
    from circuits.prompt_trace import PromptTrace

METADATA = "graph-metadata.json"
MOST_NODES = 7_500
SCHEMA = 1
FEATURE, TOKEN, LOGIT, ERROR = (
    "cross layer transcoder", "embedding", "logit", "mlp reconstruction error",
)  # fmt: skip
NODE_FIELDS = ("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp",
               "influence")  # fmt: skip
_SLUG = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")

Node = dict[str, Any]
Link = dict[str, Any]


def write_graph_json(
    trace: "PromptTrace",
    folder: str | Path,
    *,
    slug: str,
    model_name: str,
    most: int = MOST_NODES,
) -> Path:
    """Write `<slug>.json` and put the graph on the list in `graph-metadata.json`.

    At most `most` nodes: all tokens, errors and the logit, then the traced features and their
    sources, then others by size of attribution; what was dropped is told in the metadata. Pages
    freeze on far larger graphs.

    Raises:
        ResultError: a slug that is no file name, no room for the tokens, or an unwritable place.
    """
    from scipy.sparse import csr_array

    if not _SLUG.match(slug):
        raise ResultError(f"{slug!r} cannot name a graph; use letters, digits, - and _")
    fixed = 2 * len(trace.positions) + 1
    if most < fixed + 1:
        raise ResultError(f"{most} nodes have no room for {fixed} of tokens, errors and logit")
    kept = trace.kept(most - fixed)
    nodes, links = _nodes(trace, kept), _links(trace, kept)
    names = [n["node_id"] for n in nodes]
    place = {name: i for i, name in enumerate(names)}
    ends = [[place[link[side]] for link in links] for side in ("target", "source")]
    size = (len(nodes), len(nodes))
    matrix = csr_array(([link["weight"] for link in links], tuple(ends)), shape=size)
    start = np.array([n["token_prob"] for n in nodes])
    shares = cumulative(influences(matrix, start))
    for node, share in zip(nodes, shares, strict=True):
        node["influence"] = _short(share)
    metadata = _metadata(trace, slug, model_name, len(kept))
    graph = {
        "metadata": metadata,
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "",
                    "sg_pos": ""},
        "nodes": nodes, "links": links,
    }  # fmt: skip
    folder = Path(folder)
    path = folder / f"{slug}.json"
    listed = [m for m in _listed(folder) if m.get("slug") != slug]
    listed = sorted([*listed, metadata], key=lambda m: str(m["slug"]))
    _write(path, graph)
    _write(folder / METADATA, {"graphs": listed})
    return path


def check_graph_json(path: str | Path) -> dict[str, int]:
    """Read a graph file back and check it; numbers of nodes by type, and of links.

    Raises:
        ResultError: unreadable, fields missing, ids twice or not what their node says, features
            whose pairing does not give layer and number back, links without ends or weight.
    """
    path = Path(path)
    try:
        graph = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
        nodes, links, prompt = graph["nodes"], graph["links"], graph["metadata"]["prompt_tokens"]
        missing = [k for n in nodes for k in NODE_FIELDS if k not in n]
        missing += [k for k in ("metadata", "qParams") if k not in graph]
        missing += [k for e in links for k in ("source", "target", "weight") if k not in e]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path} is no attribution graph ({error}); write it again") from None
    fault = f"{missing[0]} is missing" if missing else _fault(nodes, links, len(prompt))
    if fault:
        raise ResultError(f"{path}: {fault}; write it again")
    return dict(Counter(str(n["feature_type"]) for n in nodes)) | {"links": len(links)}


def influences(matrix: Any, start: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """p (A + A^2 + ...), A the absolute weights with every row summing to 1; p as `start`.

    `matrix` is [target, source], dense or sparse.

    Raises:
        ResultError: links in a circle, for which the sum need not end.
    """
    from scipy.sparse import csr_array, diags_array

    size: Any = abs(csr_array(matrix))
    rows = np.asarray(size.sum(axis=1)).reshape(-1)
    back = np.divide(1.0, rows, out=np.zeros_like(rows), where=rows > 0)
    size = (diags_array(back) @ size).T.tocsr()
    total = np.zeros(len(rows))
    now: Any = np.asarray(start, float)
    for _ in rows:
        now = size @ now
        if not now.any():
            return total
        total += now
    raise ResultError("links go in a circle, so that influence has no end; look for a double node")


def cumulative(values: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """Share of the whole that each node holds with all larger ones, which viewers cut at."""
    order = np.argsort(-values, kind="stable")
    out = np.empty(len(values))
    out[order] = np.cumsum(values[order]) / max(values.sum(), 1e-300)
    return np.minimum(out, 1.0)


def pair(a: int, b: int) -> int:
    """Cantor's number of a pair."""
    return (a + b) * (a + b + 1) // 2 + b


def unpair(number: int) -> tuple[int, int]:
    """The pair of a Cantor number."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    b = number - diagonal * (diagonal + 1) // 2
    return diagonal - b, b


# -- nodes and links --------------------------------------------------------------------------


def _nodes(trace: "PromptTrace", kept: Any) -> list[Node]:
    about, last = trace.about, len(trace.positions) - 1
    layer, target = about["layer"], about["target"]
    nodes = [
        _node(f"E_{p.token}_{p.position}", int(p.position), "E", p.position, TOKEN,
              f"E_{p.token}-{p.position}", str(p.text))
        for p in records(trace.positions)
    ]  # fmt: skip
    nodes += [
        _node(f"{layer}_-1_{p.position}", -1, str(layer), p.position, ERROR,
              f"{layer}_-1-{p.position}", f"not reconstructed at {p.text}")
        for p in records(trace.positions) if np.isfinite(p.error)
    ]  # fmt: skip
    for r in records(kept):
        node = _node(
            f"{layer}_{r.feature}_{r.position}", pair(layer, int(r.feature)), str(layer),
            r.position, FEATURE, f"{layer}_{r.feature}-0", trace.name(r.feature),
        )  # fmt: skip
        nodes.append(node | {"activation": _short(r.activation)})
    top = about["n_layers"] + 1
    text = f'Output "{about["target_text"]}" (p={about["p"]:.3f})'
    logit = _node(f"{top}_{target}_{last}", target, str(top), last, LOGIT, f"L_{target}-{last}",
                  text)  # fmt: skip
    return [*nodes, logit | {"token_prob": _short(about["p"]), "is_target_logit": True}]


def _node(
    name: str, feature: int, layer: str, position: Any, kind: str, js_name: str, clerp: str
) -> Node:
    return {
        "node_id": name, "feature": feature, "layer": layer, "ctx_idx": int(position),
        "feature_type": kind, "token_prob": 0.0, "is_target_logit": False, "run_idx": 0,
        "reverse_ctx_idx": 0, "jsNodeId": js_name, "clerp": clerp, "influence": None,
        "activation": None,
    }  # fmt: skip


def _links(trace: "PromptTrace", kept: Any) -> list[Link]:
    about = trace.about
    layer = about["layer"]
    logit = f"{about['n_layers'] + 1}_{about['target']}_{len(trace.positions) - 1}"
    tokens = trace.positions["token"].to_numpy()
    links, brought = [], Counter[tuple[int, int]]()
    for r in records(trace.links(kept)):
        links.append(_link(f"{layer}_{r.feature}_{r.source}", f"{layer}_{r.feature}_{r.position}",
                           r.contribution))  # fmt: skip
        brought[int(r.position), int(r.feature)] += r.contribution
    for r in records(kept):
        name = f"{layer}_{r.feature}_{r.position}"
        rest = r.activation - brought[int(r.position), int(r.feature)]
        links.append(_link(f"E_{tokens[r.position]}_{r.position}", name, rest))
        links.append(_link(name, logit, r.attribution))
    for p in records(trace.positions):
        if np.isfinite(p.error):
            links.append(_link(f"{layer}_-1_{p.position}", logit, p.error))
    return links


def _link(source: str, target: str, weight: float) -> Link:
    return {"source": source, "target": target, "weight": _short(weight)}


def _metadata(trace: "PromptTrace", slug: str, model_name: str, n_kept: int) -> dict[str, Any]:
    about = trace.about
    return {
        "slug": slug, "scan": model_name, "transcoder_list": [about["dictionary"]],
        "prompt_tokens": trace.positions["text"].tolist(),
        "prompt": "".join(trace.positions["text"]), "node_threshold": 1.0,
        "schema_version": SCHEMA,
        "mnemoscope": {
            "site": about["site"], "objective": about["objective"],
            "active_features": len(trace.features), "kept_features": n_kept,
            "dropped_features": len(trace.features) - n_kept,
            "links": "parts of activations into features, gradient x activation into the logit",
        },
    }  # fmt: skip


def _short(value: float) -> float:
    """Six digits: enough to draw, and the same on every machine that computes the same."""
    return float(f"{float(value):.6g}")


# -- files and faults -------------------------------------------------------------------------


def _fault(nodes: list[Node], links: list[Link], n_tokens: int) -> str | None:
    names = Counter(n["node_id"] for n in nodes)
    twice = [name for name, n in names.items() if n > 1]
    if twice:
        return f"node {twice[0]} is there twice"
    for n in nodes:
        if not 0 <= n["ctx_idx"] < n_tokens:
            return f"node {n['node_id']} stands at {n['ctx_idx']} of {n_tokens} tokens"
        if n["feature_type"] == FEATURE:
            layer, feature = unpair(n["feature"])
            if n["node_id"] != f"{layer}_{feature}_{n['ctx_idx']}" or n["layer"] != str(layer):
                return f"the feature of node {n['node_id']} is that of layer {layer}, {feature}"
        if n["influence"] is None or not 0 <= n["influence"] <= 1:
            return f"the influence of node {n['node_id']} is {n['influence']}, not 0 to 1"
    ends = [e[side] for e in links for side in ("source", "target")]
    lost = next((end for end in ends if end not in names), None)
    return f"a link ends at {lost}, which is no node" if lost else None


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _listed(folder: Path) -> list[dict[str, Any]]:
    path = folder / METADATA
    if not path.exists():
        return []
    try:
        graphs = json.loads(path.read_text("utf-8"))["graphs"]
        return [g for g in graphs if isinstance(g, dict)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path} is damaged ({error}); move it away") from None


def _write(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(text + "\n", "utf-8")
        fresh.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
