"""Commands on a run: explain and plot, end to end."""

import pytest
import torch
from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.config import Config
from amuse.data.load import load_splits
from amuse.training.train import train_on

SETTINGS = ["data.num_dialogues=6", "model.d_model=16", "model.num_heads=2", "model.man_layers=1", "train.epochs=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots") / "run"
    config = Config.load(None, SETTINGS)
    train_on(load_splits(config.data, progress=False), config, folder, progress=False)
    return folder


def call(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.mark.parametrize("file_format", ["png", "svg"])
def test_plot_draws_every_figure(run, tmp_path, file_format):
    pytest.importorskip("matplotlib")
    call("plot", run, "-o", tmp_path, "--format", file_format)
    names = {"curves", "f1", "confusion", "calibration", "modalities"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{file_format}" for name in names}
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[file_format]
    assert all(path.read_bytes().startswith(start) for path in tmp_path.iterdir())
    if file_format == "png":
        image = pytest.importorskip("PIL.Image")
        assert all(len(set(image.open(path).convert("L").tobytes())) > 20 for path in tmp_path.iterdir())


def test_plot_refuses_other_formats(run, tmp_path):
    with pytest.raises(ValueError, match="file_format: expected one of"):
        call("plot", run, "-o", tmp_path, "--format", "bmp")


def test_explain_writes_the_report_of_a_dialogue(run, tmp_path):
    pytest.importorskip("jinja2")
    out = tmp_path / "report.html"
    call("explain", run, "--dialogue", "test1", "--method", "occlusion", "-o", out)
    page = out.read_text()
    assert "Conversation test1" in page
    first = page
    call("explain", run, "--dialogue", "test1", "--method", "occlusion", "-o", out)
    assert out.read_text() == first
    with pytest.raises(ValueError, match="dialogue: expected the id of one of 3 dialogues"):
        call("explain", run, "--dialogue", "nobody", "-o", out)


def test_modality_weights_are_shares_in_the_order_of_the_conversations(run):
    from amuse.evaluation.load import load_run
    from amuse.report.plots import modality_weights

    model, conversations, _ = load_run(run, "test")
    weights = modality_weights(model, conversations, batch_size=1)
    assert weights.shape == (conversations.num_utterances, 3)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)).double())
    torch.testing.assert_close(weights, modality_weights(model, conversations, batch_size=3))


def test_every_curve_has_a_scale_of_its_own():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    from amuse.report.plots import draw_curves

    records = [{"epoch": e, "train": {"loss": 100 / e, "focal": 0.01 / e}, "valid": {"f1": 0.1 * e}} for e in (1, 2, 3)]
    draw_curves(figure, records)
    shown = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(shown) == ["training: loss", "training: focal", "validation: f1"]
    for axes, values in zip(figure.axes, ([100, 50, 100 / 3], [0.01, 0.005, 0.01 / 3], [0.1, 0.2, 0.3]), strict=True):
        (line,) = axes.lines
        assert line.get_ydata() == pytest.approx(values)
        low, high = axes.get_ylim()
        assert high - low < 1.2 * (max(values) - min(values))


def test_classes_that_are_never_predicted_are_shown():
    matplotlib = pytest.importorskip("matplotlib.figure")
    from amuse.evaluation.quality import Quality
    from amuse.report.plots import draw_f1, draw_modalities

    names = ["joy", "anger", "fear"]
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.3, 0.1]])
    figure = matplotlib.Figure()
    draw_f1(figure, Quality.measure(probabilities, torch.tensor([0, 1, 2]), names))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.67", "1.00", "never predicted"]
    figure = matplotlib.Figure()
    draw_modalities(figure, (torch.full((3, 2), 0.5), probabilities.argmax(-1), names, ["text", "audio"]))
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["joy\n2 utterances", "anger\n1 utterance", "fear\nnever predicted"]
