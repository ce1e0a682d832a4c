"""Which backend can what, and at what cost: the table of the README, as data.

The parity tests run every row through every backend that has it, and see that the others refuse.
"""

from dataclasses import dataclass

YES = "yes"
ROTARY, DISPATCH, BY_HAND, ADDED = "¹", "²", "³", "⁴"
NOTES = {
    ROTARY: "where the bridge shows queries and keys behind the rotary embedding, or there is none "
    "(not phi3, gpt_neox)",
    DISPATCH: "where attention is one call: the shared dispatch, gptj, gpt_neo, codegen (not "
    "bloom, falcon, mpt)",
    BY_HAND: "worked out from the pattern and the values that the library shows",
    ADDED: "not the outputs of modules that add the residual themselves (bloom)",
}
"""What the marks in the table mean."""


@dataclass(frozen=True)
class Capability:
    """One row: what is done, at which kinds of sites and by which operations, in each backend."""

    what: str
    kinds: tuple[str, ...]
    ops: tuple[str, ...]
    hf: str
    lens: str
    nnsight: str


VALUES = ("zero", "mean", "resample", "replace", "add")
OUTER = ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
READS = (
    Capability(
        "attention rows: argmax, named keys, whole", ("pattern", "rows"), (),
        "yes, without a T x T matrix", YES, YES,
    ),
    Capability(
        "contributions along a direction", ("directions",), (),
        YES, YES, f"yes; by key{DISPATCH}",
    ),
    Capability("`q`, `k` of heads", ("q", "k"), (), YES, f"yes{ROTARY}", f"yes{DISPATCH}"),
    Capability("`v` of heads", ("v",), (), YES, YES, f"yes{DISPATCH}"),
    Capability("`z` of heads", ("z",), (), YES, YES, YES),
    Capability(
        "residual stream, `attn_out`, `mlp_in`, `mlp_out`", OUTER, (), YES, YES,
        f"yes{ADDED}",
    ),
)  # fmt: skip

EDITS = (
    Capability(
        "values put at `z`, residual and module outputs", ("z", *OUTER), VALUES, YES, YES,
        f"yes{ADDED}",
    ),
    Capability("values put at `q`", ("q",), VALUES, YES, f"yes{ROTARY}", f"yes{DISPATCH}"),
    Capability(
        "values put at `k`, `v` of one query head", ("k", "v"), VALUES, YES,
        f"yes{BY_HAND}, `k`{ROTARY}", f"yes{BY_HAND}{DISPATCH}",
    ),
    Capability(
        "`uniform`, `sink`, `knockout` of a pattern", ("pattern",),
        ("uniform", "sink", "knockout"), YES, "yes, in its own pattern", f"yes{BY_HAND}",
    ),
)  # fmt: skip

OPERATIONS = (
    Capability(
        "`prefill`, `crop`, `grow`", (), (), "context read once, keys and values kept",
        "tokens kept, run again each time", "tokens kept, run again each time",
    ),
    Capability(
        "`extend` by n suffixes behind T tokens", (), (),
        "n suffixes; what they share below their first edit once", "n forwards of T, eager: T x T",
        "n forwards of T, eager: T x T",
    ),
    Capability(
        "`generate`", (), (), "a token at a time", "a whole forward a token",
        "a whole forward a token",
    ),
    Capability(
        "`gradients` (patch screen, circuit)", (), (), "one backward pass", "no", "no",
    ),
    Capability(
        "models outside the shared dispatch", (), (), "no",
        "yes, where TransformerLens has an adapter", "yes: bloom, falcon, gptj, mpt, ...",
    ),
    Capability("a service elsewhere", (), (), "no", "no", "`remote=True`"),
)  # fmt: skip


def capability_table() -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the README's block `capabilities`; `NOTES` belong beneath."""
    rows = [
        [f"{verb}{row.what}", row.hf, row.lens, row.nnsight]
        for verb, group in (("read ", READS), ("edit: ", EDITS), ("", OPERATIONS))
        for row in group
    ]
    return ["", "`hf` (default)", "`lens`", "`nnsight`"], rows
