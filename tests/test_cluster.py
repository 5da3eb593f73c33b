"""`--engine ray`: the bytes of the local engine, whatever is killed; on two processes of a local Ray."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra: pip install amuse-kernels[cluster]")
pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")
pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[text]")

import ray

from amuse.config import Config
from amuse.encoders.words import TextOptions
from amuse.experiments.ablation import ablate
from amuse.experiments.repetition import repeat
from amuse.media.cluster import networks
from amuse.media.extract import Options
from amuse.media.local import encode_locally
from amuse.media.prepare import prepare
from amuse.media.sources import folder_source
from tests.media_files import write_talks
from tests.test_prepare import ROOT, assert_same, command, members, shards
from tests.tiny_encoders import write_tiny_encoders, write_tiny_text_encoder

pytestmark = pytest.mark.slow
SMALL = Config.load(
    None,
    ["data.num_dialogues=4", "model.d_model=16", "model.num_heads=2", "model.man_layers=1", "train.epochs=1"],
)
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
KILLS = 4 if "AMUSE_SOAK_STEPS" in os.environ else 1  # of the driver, of an actor and of a worker each


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A local Ray of two processes."""
    before = dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    return write_talks(tmp_path_factory.mktemp("talks"), count=6, utterances=4)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    encoders = write_tiny_encoders(tmp_path_factory.mktemp("encoders"))
    words = TextOptions(str(write_tiny_text_encoder(encoders / "text")), context=1)
    return Options(audio=str(encoders / "wav2vec2"), vision=str(encoders / "vit"), text=words)


@pytest.fixture(scope="module")
def reference(talks, options, tmp_path_factory):
    """A folder that one process makes without interruption."""
    out = tmp_path_factory.mktemp("reference")
    run(talks, out, options)
    return out


def run(talks, out, options, engine="local"):
    return prepare(folder_source(talks), out, options, engine=engine, shard_size=3, progress=False)


def test_networks_on_ray_make_the_same_bytes(cluster, talks, options, reference, tmp_path):
    run(talks, tmp_path, options, "ray")
    assert_same(tmp_path, reference)


def test_encoders_without_a_network_make_the_same_bytes_on_ray(cluster, talks, tmp_path):
    for engine in ("local", "ray"):
        run(talks, tmp_path / engine, Options(), engine)
    assert_same(tmp_path / "ray", tmp_path / "local")


def test_processes_that_read_ahead_make_the_same_bytes(talks, options, reference, tmp_path, monkeypatch):
    """As the local engine does for a GPU."""

    def on_another_device(shards, extractor, root, workers):
        extractor.device = "not cpu"
        return encode_locally(shards, extractor, root, 2)

    monkeypatch.setattr("amuse.media.prepare.encode_locally", on_another_device)
    monkeypatch.setattr("amuse.media.local.make_shard", None)
    run(talks, tmp_path, options)
    assert_same(tmp_path, reference)


@pytest.mark.parametrize("victims", [("ray::_Network",), ("ray::_read", "ray::_write", "ray::IDLE")])
def test_killed_processes_lose_nothing(cluster, talks, options, reference, tmp_path, victims):
    """SIGKILL to an actor, and to a worker, at a random moment."""
    draw = random.Random(0)
    kills, latest = 0, 0.0
    while kills < KILLS:
        out = tmp_path / str(time.monotonic())
        with killing(out, victims, after=draw.uniform(0, latest)) as killed:
            run(talks, out, options, "ray")
        # between the first file and the last
        latest = time.time() - min(path.stat().st_mtime for path in (out / "shards").iterdir())
        assert_same(out, reference)
        for moment in killed:
            kills += 1
            print(f"killed one of {victims}: seconds after the first file, and files: {moment}", flush=True)


@contextlib.contextmanager
def killing(out, victims, after):
    """Kills one process of Ray, `after` seconds after the first file; yields a list that gets when and at how many."""
    killed, ended = [], threading.Event()

    def kill():
        while not shards(out) and not ended.wait(0.001):
            pass
        began = time.monotonic()
        ended.wait(after)
        while not killed and not ended.wait(0.001):
            for process in workers_of_ray():
                if title(process).startswith(victims) and not killed:
                    os.kill(process, signal.SIGKILL)
                    killed.append((round(time.monotonic() - began, 2), len(shards(out))))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


def test_killed_driver_loses_nothing_and_leaves_no_worker(talks, options, reference, tmp_path):
    """SIGKILL at random moments, then to the end: the same bytes as without."""
    encoders = ["--audio", options.audio, "--vision", options.vision, "--engine", "ray"]
    encoders += ["--text", options.text.encoder, "--set", "data.context=1"]
    draw = random.Random(0)
    moments = []
    while len(moments) < KILLS:
        process = subprocess.Popen(
            command(talks, tmp_path, *encoders),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "RAY_ADDRESS": "local"},
            start_new_session=True,
        )
        began, there = time.monotonic(), shards(tmp_path)
        # half of them while it works, half while it starts
        working = len(moments) % 2 == 0
        while working and process.poll() is None and shards(tmp_path) == there:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5 if working else 10))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            moments.append((round(time.monotonic() - began, 2), len(shards(tmp_path))))
            print(f"killed the driver: seconds, and files out of {len(shards(reference))}: {moments[-1]}", flush=True)
        deadline = time.monotonic() + 120
        while workers_left(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert workers_left(process.pid) == []
        for name in shards(tmp_path):
            assert (tmp_path / "shards" / name).read_bytes() == (reference / "shards" / name).read_bytes()
        if len(shards(tmp_path)) == len(shards(reference)):  # too late: from the beginning
            shutil.rmtree(tmp_path)
    run(talks, tmp_path, options)
    assert_same(tmp_path, reference)


def test_too_many_networks_are_refused():
    assert networks({"CPU": 8.0}, None, "cpu") == 4
    assert networks({"CPU": 16.0, "GPU": 4.0}, None, "cuda") == 4
    with pytest.raises(ValueError, match=r"workers: expected at most 1 on a cluster of 2 cores and 0 GPUs, .* got 2"):
        networks({"CPU": 2.0}, 2, "cpu")
    with pytest.raises(ValueError, match="device: expected GPUs in the cluster for cuda, got none"):
        networks({"CPU": 2.0}, None, "cuda")


def test_an_unknown_engine_is_refused(talks, tmp_path):
    with pytest.raises(ValueError, match="engine: expected one of local, ray, got 'slurm'"):
        run(talks, tmp_path, Options(), "slurm")


def workers_left(session):
    """Processes of a session but for Ray's two agents, which take a minute to notice that all others are gone."""
    return [process for process in members(session) if not title(process).startswith(AGENTS)]


def workers_of_ray():
    """Processes of this test's Ray: grandchildren of this process."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return [process for process, parent in parents.items() if parents.get(parent) == os.getpid()]


def title(process):
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def scores(table):
    """The cells of a table that do not depend on the machine's speed."""
    return [line.split("|")[:4] for line in table.splitlines()]


def test_repeated_runs_on_ray_have_the_scores_of_local_ones(cluster, tmp_path):
    outs = [repeat(SMALL, tmp_path / engine, 2, progress=False, engine=engine) for engine in ("local", "ray")]
    assert scores(outs[0]) == scores(outs[1])
    weights = [(tmp_path / engine / "seed1" / "best" / "model.safetensors").read_bytes() for engine in ("local", "ray")]
    assert weights[0] == weights[1]


def test_ablations_on_ray_train_a_configuration_once(cluster, tmp_path):
    outs = [ablate(SMALL, tmp_path / engine, ["V"], progress=False, engine=engine) for engine in ("local", "ray")]
    assert [row.result.paired for row in outs[0]] == [row.result.paired for row in outs[1]]
    assert len(list((tmp_path / "ray" / "runs").iterdir())) == len(list((tmp_path / "local" / "runs").iterdir())) == 4
