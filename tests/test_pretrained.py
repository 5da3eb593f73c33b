"""A model to begin with: its data are fetched and verified, it is trained, kept with a card, and used without a run."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")
pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[text]")

from amuse.cli.main import app
from amuse.evaluation.load import load_run
from amuse.inference.expressions import face_expressions
from amuse.inference.prediction import PredictedUtterance, table
from amuse.pretrained import find, pretrain, runs, sources
from amuse.pretrained.card import CARD_FILE
from tests.media_files import tone, write_meld, write_wav

SMALL = ("train.epochs=1", "model.d_model=16", "model.num_heads=2")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AMUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def meld(tmp_path, monkeypatch):
    """A folder of small CSVs like MELD's, which the recipe takes for the published ones."""
    folder = write_meld(tmp_path / "meld", dialogues=4)
    files = {}
    for name in sources.MELD:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        files[name] = sources.Published("a/b", "c0ffee", f"data/{name}", digest)
    monkeypatch.setitem(runs.RECIPES, "meld", runs.Recipe("meld", "meld", files))
    return folder


@pytest.fixture
def github(meld, monkeypatch):
    """The requests that a server received; it has the files at their revision and nothing else."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            file = meld / self.path.rpartition("/")[2]
            self.send_response(200 if self.path == f"/a/b/c0ffee/data/{file.name}" and file.is_file() else 404)
            self.end_headers()
            if file.is_file():
                self.wfile.write(file.read_bytes())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(sources, "GITHUB", f"http://127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()
        thread.join()


def amuse(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def scored_words(report):
    """The words of a report that have a contribution each, though the model reads one vector per utterance."""
    return re.findall(r'<span class="w [^>]*title=[^>]*>([^<]+)<', report.read_text(encoding="utf-8"))


def test_files_are_fetched_once_and_are_those_that_were_published(github, meld, tmp_path):
    files = runs.RECIPES["meld"].files
    sources.fetch(files, tmp_path / "data")
    assert {path.name for path in (tmp_path / "data").iterdir()} == set(files)
    assert len(github) == 3
    (tmp_path / "data" / "dev_sent_emo.csv").write_text("changed")
    sources.fetch(files, tmp_path / "data")
    assert len(github) == 4
    sources.verify(files, tmp_path / "data")
    (meld / "train_sent_emo.csv").write_text("another revision")
    with pytest.raises(ValueError, match="expected SHA-256"):
        sources.fetch(files, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())
    with pytest.raises(FileNotFoundError, match=r"unavailable .*404.*--data FOLDER"):
        sources.fetch({"x.csv": files["dev_sent_emo.csv"]._replace(path="data/x.csv")}, tmp_path / "other")


def test_another_file_than_the_published_one_is_refused(meld, cache):
    (meld / "dev_sent_emo.csv").write_text("mine")
    with pytest.raises(ValueError, match="to train on other data: amuse train --data FOLDER"):
        pretrain("meld", meld)
    (meld / "dev_sent_emo.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"dev_sent_emo\.csv: no such file"):
        pretrain("meld", meld)


def test_the_pinned_files_are_melds(shared_data):
    sources.verify(sources.MELD, shared_data / "meld")


def test_without_a_run_prediction_uses_the_pretrained_one_or_says_which_command_makes_it(github, cache, tmp_path):
    video = write_wav(tmp_path / "talk.wav", tone(2.0))
    (tmp_path / "talk.csv").write_text("start,end,speaker,text\n0,1,Ann,Words 1 here\n1,2,Bob,Words 0 here\n")
    with pytest.raises(FileNotFoundError, match="amuse pretrained meld trains one"):
        CliRunner().invoke(app, ["predict", str(video)], catch_exceptions=False)
    with pytest.raises(FileNotFoundError, match="expected a run or a recording"):
        CliRunner().invoke(app, ["predict", str(tmp_path / "none.mp4")], catch_exceptions=False)
    folder, metrics = pretrain("meld", None, SMALL, progress=False)
    assert (folder, metrics is None) == (find("meld"), False)
    card = (folder / CARD_FILE).read_text(encoding="utf-8")
    for said in ("GPL-3.0", "revision c0ffee", "weighted F1", "`train.epochs=1`", "must not be used for decisions"):
        assert said in card
    assert "already trained" in amuse("pretrained", "meld")
    amuse("predict", video, "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["text"] for row in rows] == ["Words 1 here", "Words 0 here"]
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1)
    assert "2 utterances explained" in amuse("explain", video, "-o", tmp_path / "report.html", "--samples", 20)
    assert scored_words(tmp_path / "report.html") == ["Words", "1", "here", "Words", "0", "here"]
    amuse("explain", folder, "-o", tmp_path / "own.html", "--samples", 20)
    first = load_run(folder, "test")[1][0]
    assert scored_words(tmp_path / "own.html") == " ".join(u.text for u in first.utterances).split()
    with pytest.raises(ValueError, match="VIDEO: expected a recording to predict"):
        CliRunner().invoke(app, ["predict", str(folder)], catch_exceptions=False)


@pytest.mark.slow
def test_interrupted_training_is_resumed_and_one_of_other_settings_is_replaced(meld, cache, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "evaluate", interrupt)
    for setting in ("train.seed=1", "train.seed=0"):
        with pytest.raises(KeyboardInterrupt):
            pretrain("meld", meld, (*SMALL, setting), progress=False)
    monkeypatch.undo()
    monkeypatch.setenv("AMUSE_CACHE", str(cache))
    monkeypatch.setitem(runs.RECIPES, "meld", runs.Recipe("meld", "meld", {}))
    with pytest.raises(FileNotFoundError):
        find()
    folder, _ = pretrain("meld", meld, (*SMALL, "train.seed=0"), progress=False)
    assert "train.seed=0" in (folder / CARD_FILE).read_text()
    assert not folder.with_name("meld.unfinished").exists()
    with pytest.raises(ValueError, match="expected one of meld, got 'iemocap'"):
        pretrain("iemocap")


def test_expressions_of_faces_stand_beside_predictions(shared_data):
    pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install amuse-kernels[faces]")
    clip = shared_data / "clip" / "single_face.mp4"
    if not clip.is_file():
        pytest.skip("no clip/ there")
    try:
        (found,) = face_expressions([(0.0, 1.0)], clip, print)
    except ImportError as error:
        pytest.skip(str(error))
    assert found is not None
    assert set(found) == {"angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"}
    assert sum(found.values()) == pytest.approx(1, abs=0.05)
    row = PredictedUtterance(0.0, 1.0, "Ann", "Hello.", "joy", 0.6, {"joy": 0.6, "anger": 0.4}, None, ["text"], found)
    assert "Hello.  (face, by fer: " in table([row])
    blank = shared_data / "clip" / "no_face.mp4"
    assert face_expressions([(0.0, 1.0)], blank, lambda problem: None) == [None]


def test_the_report_shows_expressions_as_another_models_view(meld, cache, shared_data, tmp_path):
    from amuse.inference.expressions import installed

    clip = shared_data / "clip" / "single_face.mp4"
    if not clip.is_file() or not installed():
        pytest.skip("needs clip/ and the face network, see docs/data.md")
    (tmp_path / "talk.csv").write_text("start,end,speaker,text\n0,1,Ann,Words 1 here\n")
    pretrain("meld", meld, SMALL, progress=False)
    options = ("--transcript", tmp_path / "talk.csv", "--samples", 20, "-o", tmp_path / "report.html")
    amuse("explain", clip, *options)
    assert "from the picture alone" in (tmp_path / "report.html").read_text(encoding="utf-8")
    amuse("explain", clip, *options, "--no-expressions")
    assert "from the picture alone" not in (tmp_path / "report.html").read_text(encoding="utf-8")
