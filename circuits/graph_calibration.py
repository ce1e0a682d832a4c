"""How often is the verdict on token hubs right? In worlds whose truth was planted.

Every world of `probes.planted_features` goes the way of a real graph, from positions to counts in
blocks to the verdict. Held against the truth: the verdict on the common tokens, hubs named where
no feature looks at the token, hubs found where there are some, and the exponent of planted degrees.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.degree_fits import degrees, fit_power_law
from circuits.feature_counting import count_positions, merged
from circuits.feature_counts import FeatureCounts
from circuits.graph_verdict import OCCURRENCES, judge_class, token_hubs
from circuits.shelf import Shelf
from circuits.shuffles import shuffled_within
from circuits.statistics import clopper_pearson
from interp.errors import PromptError, UnknownNameError
from interp.store import (
    PACKAGES,
    RESULT,
    Provenance,
    peak_memory_mb,
    read_result,
    unharmed,
    write_folder,
    write_json,
)
from probes.planted_features import SLOPE, WORLDS, PlantedFeatures, plant

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int, str], None]
KIND, SCHEMA = "graph-calibration", 1
N_BLOCKS = 12


@dataclass(frozen=True, eq=False)
class GraphCalibration:
    """One row a world and seed.

    Columns: world, seed, expected (the class is wider), verdict, right (supported where it is
    wider, and only there), without_shuffle (the ratio at equal occurrences that labels shuffled
    within documents were not taken out of), ratio, low, high (with them), false_hubs (tokens
    named in a blind world), hubs, found (planted hubs that could be tested, and those named),
    exponent_off (fitted less planted, of degrees), seconds.
    """

    settings: dict[str, Any]
    provenance: Provenance
    rows: "pd.DataFrame"

    def summary(self) -> dict[str, Any]:
        """Counts with Clopper-Pearson intervals, and the mean error of the exponent."""
        rows = self.rows
        blind = rows[rows["world"].map(lambda name: WORLDS[name].blind)]
        out: dict[str, Any] = {
            "right": _share(rows["right"].sum(), len(rows)),
            "supported where not wider": _share(
                ((rows["verdict"] == "supported") & ~rows["expected"]).sum(),
                (~rows["expected"]).sum(),
            ),
            "blind worlds with a hub": _share((blind["false_hubs"] > 0).sum(), len(blind)),
            "hubs found": _share(rows["found"].sum(), rows["hubs"].sum()),
        }
        off = rows["exponent_off"].dropna()
        out["exponent_off"] = float(off.mean()) if len(off) else None
        return out

    def save(self, folder: str | Path) -> Path:
        """Write a folder with result.json and the table."""

        def fill(target: Path) -> None:
            self.rows.to_parquet(target / "rows.parquet")
            write_json(target / RESULT, {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings,
                "provenance": self.provenance,
            })  # fmt: skip

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "GraphCalibration":
        """Read a folder.

        Raises:
            ResultError: missing, damaged, of another kind or version.
        """
        import pandas as pd

        meta = read_result(Path(folder), kind=KIND, version=SCHEMA)
        with unharmed(folder):
            rows = pd.read_parquet(Path(folder) / "rows.parquet")
            return cls(meta["settings"], Provenance(**meta["provenance"]), rows)


def calibrate_graph(
    worlds: Sequence[str] = tuple(WORLDS),
    seeds: int = 20,
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    **sizes: Any,
) -> GraphCalibration:
    """Judge planted worlds and hold what is said against the truth.

    `sizes` are passed to `probes.planted_features.plant`; finished parts are kept in `folder`.

    Raises:
        UnknownNameError: no such world.
        PromptError: no seed.
    """
    import pandas as pd

    for name in worlds:
        if name not in WORLDS:
            raise UnknownNameError("planted world", name, WORLDS)
    if seeds < 1:
        raise PromptError(f"a calibration needs one seed or more, got {seeds}")
    settings: dict[str, Any] = {
        "worlds": list(worlds), "seeds": seeds, "n_blocks": N_BLOCKS, "m": OCCURRENCES, **sizes,
    }  # fmt: skip
    shelf, start, rows = Shelf(folder, settings), time.perf_counter(), []
    jobs = [(name, seed) for name in worlds for seed in range(seeds)]
    for k, (name, seed) in enumerate(jobs):
        part = f"{name.replace(' ', '-')}-{seed}"
        rows += shelf.kept_rows(part, partial(_row, name, seed, sizes))
        if progress is not None:
            progress(k + 1, len(jobs), name)
    return GraphCalibration(settings, _made(time.perf_counter() - start), pd.DataFrame(rows))


def planted_blocks(
    world: PlantedFeatures, *, n_blocks: int = N_BLOCKS, seed: int = 0
) -> tuple[list[FeatureCounts], list[FeatureCounts]]:
    """Counts of a world in blocks of documents, and of its labels shuffled within documents."""
    block = world.document * n_blocks // (int(world.document[-1]) + 1)
    starts = np.searchsorted(block, np.arange(n_blocks + 1))
    fired = np.searchsorted(world.row, starts)
    mixed = shuffled_within(world.tokens, world.document, seed=seed)
    both: list[list[FeatureCounts]] = [
        [
            count_positions(
                tokens[a:b], world.document[a:b], world.row[c:d] - a, world.feature[c:d],
                world.value[c:d], n_tokens=world.n_tokens, n_features=world.n_features,
            )
            for a, b, c, d in zip(starts, starts[1:], fired, fired[1:], strict=False)
        ]
        for tokens in (world.tokens, mixed)
    ]  # fmt: skip
    return both[0], both[1]


def _row(name: str, seed: int, sizes: dict[str, Any]) -> list[dict[str, Any]]:
    start = time.perf_counter()
    planted = plant(name, seed=seed, **sizes)
    truth, (blocks, nulls) = planted.world, planted_blocks(planted, seed=seed)
    others = np.setdiff1d(np.arange(planted.n_tokens), planted.common)
    groups: dict[str, Any] = {"members": planted.common, "others": others}
    said = judge_class("common tokens", blocks, nulls, **groups)
    bare = judge_class("common tokens", blocks, None, **groups)
    hubs = token_hubs(blocks, nulls, others=others)
    planted_hub = hubs["token"].isin(truth.hubs)
    ratio = said.ratios[0]
    return [{
        "world": name, "seed": seed, "expected": truth.wider, "verdict": said.verdict,
        "right": (said.verdict == "supported") == truth.wider,
        "without_shuffle": bare.ratios[0].ratio,
        "ratio": ratio.ratio, "low": ratio.low, "high": ratio.high,
        "false_hubs": int(hubs["hub"].sum()) if truth.blind else 0,
        "hubs": int(planted_hub.sum()), "found": int((planted_hub & hubs["hub"]).sum()),
        "exponent_off": _exponent_off(planted, blocks), "seconds": time.perf_counter() - start,
    }]  # fmt: skip


def _exponent_off(planted: PlantedFeatures, blocks: Sequence[FeatureCounts]) -> float | None:
    if planted.world.name != "degree":
        return None
    counts = merged(blocks)
    fit = fit_power_law(degrees(counts)[counts.occurrences >= OCCURRENCES])
    return None if fit.problem else fit.alpha - SLOPE


def _share(k: float, n: float) -> dict[str, Any]:
    interval = list(clopper_pearson(int(k), int(n))) if n else None
    return {"k": int(k), "n": int(n), "interval": interval}


def _made(seconds: float) -> Provenance:
    """What made it: no model did."""
    installed = {d.name: d.version for d in metadata.distributions()}
    return Provenance(
        model="planted worlds", source="probes.planted_features", revision=None,
        quantisation=None, weight_hash=None, tokenizer_hash="", architecture="none", n_layers=0,
        n_heads=0, dtype="none", device="cpu", attention="none",
        versions={name: installed.get(name, "not installed") for name in PACKAGES},
        created=datetime.now(UTC).isoformat(timespec="seconds"), seconds=round(seconds, 1),
        peak_memory_mb=peak_memory_mb(),
    )  # fmt: skip
