"""The calibration of the graph's verdict: what is counted, kept, and refused."""

import numpy as np
import pandas as pd
import pytest
from graphs import counted

from circuits.graph_calibration import GraphCalibration, calibrate_graph, planted_blocks
from interp.errors import PromptError, ResultError, UnknownNameError
from probes.planted_features import plant

SIZES = {"n_documents": 72, "n_features": 300, "active": 4.0}


def test_blocks_are_those_of_a_slow_counter():
    world = plant("hubs", seed=0, n_documents=8, length=40, n_features=50, active=2.0)
    blocks, nulls = planted_blocks(world, n_blocks=4)
    for i, block in enumerate(blocks):
        mine = world.document // 2 == i
        fired = mine[world.row]
        slow = counted(
            world.tokens[mine], world.document[mine], world.row[fired] - np.flatnonzero(mine)[0],
            world.feature[fired], world.value[fired], n_tokens=300, n_features=50,
        )  # fmt: skip
        for field in ("indptr", "feature", "count", "documents", "occurrences"):
            assert np.array_equal(getattr(block, field), getattr(slow, field))
        assert np.array_equal(block.token_documents, nulls[i].token_documents)
        assert np.array_equal(block.firing, nulls[i].firing)


def test_verdicts_are_held_against_the_truth_kept_and_read_back(tmp_path):
    names, seen = ["hubs", "bursty"], []
    found = calibrate_graph(
        names, 2, folder=tmp_path / "parts", progress=lambda k, n, w: seen.append((k, n, w)),
        **SIZES,
    )  # fmt: skip
    assert found.rows["world"].tolist() == ["hubs", "hubs", "bursty", "bursty"]
    assert found.rows["right"].all() and not found.rows["false_hubs"].any()
    assert seen[-1] == (4, 4, "bursty")
    told = found.summary()
    assert told["right"]["k"] == told["right"]["n"] == 4
    assert told["supported where not wider"] | {"interval": None} == {
        "k": 0, "n": 2, "interval": None,
    }  # fmt: skip
    again = calibrate_graph(names, 2, folder=tmp_path / "parts", **SIZES)
    pd.testing.assert_frame_equal(again.rows, found.rows)  # seconds too: nothing was run again
    kept = GraphCalibration.load(found.save(tmp_path / "result"))
    pd.testing.assert_frame_equal(kept.rows, found.rows)
    assert kept.settings["seeds"] == 2 and kept.summary() == told


def test_refusals(tmp_path):
    with pytest.raises(UnknownNameError, match="planted world"):
        calibrate_graph(["nul"])
    with pytest.raises(PromptError, match="one seed"):
        calibrate_graph(["null"], 0)
    with pytest.raises(ResultError):
        GraphCalibration.load(tmp_path)
