"""A real Ray cluster of two workers on this machine, held against a single process."""

import json
import os
import signal

import pytest
import texts
import worlds
from families import tiny

import circuits
import interp
from circuits.binding_plan import BindSettings
from circuits.crew.ray_cluster import Cluster, idle_gpus
from circuits.crew.ray_engine import run_on_ray
from circuits.crew.work import EXPERIMENTS
from circuits.graph_plan import GraphSettings
from circuits.plan import ScanSettings
from circuits.validation_plan import ValidateSettings
from interp.errors import ClusterError, PromptError, UnknownNameError
from probes import planted, planted_binding

TWO = Cluster(workers=2)


@pytest.fixture(scope="module")
def cluster():
    """One cluster for all tests of this file, as a user would have one running."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             logging_level="ERROR", object_store_memory=200 * 2**20)  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ray")


def saved(made, where):
    made.model.save_pretrained(where)
    made.tokenizer.save_pretrained(where)
    return str(where)


def same(a, b, folder):
    """Both results, written again: every file but the provenance holds the same bytes."""
    ours, theirs = (again(r, folder / "here").save(folder / n) for r, n in ((a, "a"), (b, "b")))
    names = sorted(str(p.relative_to(ours)) for p in ours.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(theirs)) for p in theirs.rglob("*") if p.is_file())
    for name in names:
        x, y = (ours / name).read_bytes(), (theirs / name).read_bytes()
        if name == "result.json":
            x, y = (json.loads(text) for text in (x, y))
            for each in (x, y):
                each.pop("provenance")
        assert x == y, name
    assert len(names) > 2


def again(result, where):
    """A result as it is read from a place: what was just measured names no place yet."""
    return type(result).load(result.save(where))


class Killer:
    """Kills a worker as soon as something is done; remembers what was said."""

    def __init__(self):
        self.lines, self.processes, self.killed = [], {}, False

    def say(self, line):
        self.lines.append(line)
        if ", process " in line:
            worker = line.split(":")[0]
            self.processes[worker] = int(line.split(", process ")[1].split(":")[0])

    def progress(self, done, total, what):
        if done and not self.killed and self.processes:
            self.killed = True
            os.kill(self.processes.popitem()[1], signal.SIGKILL)


@pytest.mark.real
@pytest.mark.slow
def test_a_scan_with_a_worker_killed_is_that_of_one_process(real, cluster, tmp_path):
    settings = ScanSettings(
        lengths=(128,), depths=(0.0, 0.5, 1.0), n_haystacks=4, attention=1, stop_early=False
    )
    alone = circuits.scan(real, settings)
    killer = Killer()
    shared = run_on_ray(
        "scan", "smollm2-135m", settings=settings, cluster=TWO, parts=tmp_path / "parts",
        progress=killer.progress, say=killer.say, dtype="float32",
    )  # fmt: skip
    assert killer.killed and any("died" in line and "another" in line for line in killer.lines)
    assert not shared.trials["trial"].duplicated().any() and len(shared.trials) == 12
    same(alone, shared, tmp_path)


def test_runs_stop_early_at_the_same_trial_and_go_on_under_the_other_engine(cluster, tmp_path):
    made = planted.build("induction_pair")
    model = saved(made, tmp_path / "model")
    options = worlds.MATERIALS.scan | made.truth.options | {"stop_early": True}
    settings = ScanSettings(**options)
    here = interp.load(model)
    alone = circuits.scan(here, settings)
    assert any("stopped after" in note for note in alone.notes)

    def stop(done, total, what):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        circuits.scan(here, settings, parts=tmp_path / "parts", progress=stop)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("c*.safetensors")}
    seen = []
    shared = run_on_ray("scan", model, settings=settings, cluster=TWO, parts=tmp_path / "parts",
                        progress=lambda *a: seen.append(a))  # fmt: skip
    same(alone, shared, tmp_path)
    assert kept and all(path.stat().st_mtime_ns == at for path, at in kept.items())
    assert [a[0] for a in seen] == sorted(a[0] for a in seen) and seen[-1][0] <= seen[-1][1]
    other = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        run_on_ray("scan", model, settings=settings, cluster=TWO, parts=other, progress=stop)
    assert list(other.glob("c*.safetensors"))
    again = circuits.scan(here, settings, parts=other)
    same(alone, again, tmp_path)


def test_validations_are_those_of_one_process(cluster, tmp_path):
    made = planted.build("induction_pair")
    model = saved(made, tmp_path / "model")
    heads = ",".join(map(str, made.truth.heads("copy")))
    settings = ValidateSettings(
        ablations=("mean", "resample"), n_needles=6, length=101, n_draws=64, n_curve=4, curve=(),
        prompts=tuple(worlds.PROMPTS.items()), specificity=False,
    )  # fmt: skip
    alone = circuits.validate(interp.load(model), heads, settings)
    killer = Killer()
    shared = run_on_ray(
        "validate", model, heads, settings=settings, cluster=TWO, parts=tmp_path / "parts",
        say=killer.say, progress=killer.progress,
    )  # fmt: skip
    assert killer.killed
    same(alone, shared, tmp_path)


def test_binding_runs_are_those_of_one_process(cluster, tmp_path):
    made = planted_binding.build("positional", n=8)
    model = saved(made, tmp_path / "model")
    task = tmp_path / "task.json"
    task.write_text(json.dumps(made.task), "utf-8")
    settings = BindSettings(
        tasks=(str(task),), n=(8,), style="completion", n_sets=3, donors=2, bootstrap=4,
        n_controls=2, heads=False,
    )  # fmt: skip
    alone = circuits.binding(interp.load(model), settings)
    shared = run_on_ray("bind", model, settings=settings, cluster=TWO)
    same(alone, shared, tmp_path)


def test_graphs_with_trained_dictionaries_are_those_of_one_process(cluster, tmp_path):
    where = tmp_path / "model"
    tiny("llama").save_pretrained(where)
    texts.space_tokenizer().save_pretrained(where)
    settings = GraphSettings(
        layers=(0, 1), d_dict=40, k=4, steps=6, batch=64, train_tokens=500, length=24,
        skip_first=2, blocks=4, draws=20, top=4,
    )  # fmt: skip
    corpus = texts.texts(80)
    alone = circuits.function_tokens(interp.load(str(where)), corpus, settings)
    shared = run_on_ray("graph", str(where), corpus, settings=settings, cluster=TWO)
    same(alone, shared, tmp_path)


def test_what_cannot_be_run_is_refused_in_one_line(cluster, tmp_path):
    settings = ScanSettings(lengths=(99999,))
    refused = {
        "do not fit": (ClusterError, "scan", "smollm2-135m", Cluster(2, gpus=1)),
        "500 GB memory": (ClusterError, "scan", "smollm2-135m", Cluster(1, memory_gb=500)),
        "unknown experiment": (UnknownNameError, "scam", "smollm2-135m", TWO),
        "loads the model itself": (ClusterError, "scan", tiny("llama"), TWO),
    }
    for words, (kind, name, model, crew) in refused.items():
        with pytest.raises(kind, match=words):
            run_on_ray(name, model, settings=settings, cluster=crew, parts=tmp_path / "parts")
    with pytest.raises(ClusterError, match="nothing below zero"):
        Cluster(0)
    assert not (tmp_path / "parts").exists()


def test_an_experiments_own_refusal_comes_back_as_it_is(cluster, tmp_path):
    made = planted.build("induction_pair")
    model = saved(made, tmp_path / "model")
    with pytest.raises(PromptError, match="leaves no room for a needle"):
        run_on_ray("scan", model, settings=ScanSettings(lengths=(10,)), cluster=Cluster(1))


def test_a_crew_that_keeps_dying_gives_up_and_keeps_its_parts(cluster, tmp_path):
    made = planted.build("induction_pair")
    model = saved(made, tmp_path / "model")
    settings = ScanSettings(**(worlds.MATERIALS.scan | made.truth.options))
    killed = []

    def say(line):
        if ", process " in line:
            killed.append(int(line.split(", process ")[1].split(":")[0]))
            os.kill(killed[-1], signal.SIGKILL)

    with pytest.raises(ClusterError, match="no worker is left: 2 died"):
        run_on_ray("scan", model, settings=settings, cluster=Cluster(1, deaths=1), say=say,
                   parts=tmp_path / "parts")  # fmt: skip
    assert len(killed) == 2


def test_gpus_that_nobody_asked_for_are_told_of():
    assert "--gpus-per-worker 1" in idle_gpus(8.0, Cluster(), None)
    for there, cluster, device in ((0.0, Cluster(), None), (8.0, Cluster(gpus=0.5), None),
                                   (8.0, Cluster(), "cpu")):  # fmt: skip
        assert idle_gpus(there, cluster, device) is None


def test_every_experiment_of_the_table_can_be_imported():
    for chosen in EXPERIMENTS.values():
        assert callable(chosen.function())
