"""Audio and vision encoders trained with the model, from mp4 files on."""

import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")
pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[text]")

import transformers
from typer.testing import CliRunner

from amuse.cli.main import app
from amuse.config import Config, ModelConfig, TrainConfig
from amuse.data.batch import collate
from amuse.data.load import load_split, load_splits
from amuse.data.spec import DataSpec
from amuse.encoders.choose import audio_encoder, vision_encoder
from amuse.encoders.signal import RawStream
from amuse.encoders.trainable import TOKENS_PER_CHUNK, SignalEncoder, TextEncoder
from amuse.evaluation.load import load_best
from amuse.evaluation.predict import predict
from amuse.inference.prediction import predict_recording
from amuse.inference.streaming import StreamingSession
from amuse.layout import Layout
from amuse.model.amuse import Amuse
from amuse.training.optimization import parameter_groups
from amuse.training.train import train
from tests.media_files import tone, write_talks

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
SETTINGS = [
    "model.d_model=16",
    "model.num_heads=2",
    "model.man_layers=1",
    "model.causal=true",
    "model.temporal=attention",
    "train.epochs=1",
    "train.batch_size=4",
    "data.dataset=prepared",
    "data.modalities=[audio, video]",
]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folders of tiny transformers models with random weights."""
    root = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    models = {
        "vit": transformers.ViTModel(transformers.ViTConfig(**SIZE, image_size=32, patch_size=16)),
        "clip": transformers.CLIPModel(
            transformers.CLIPConfig(
                vision_config={**SIZE, "image_size": 32, "patch_size": 16}, text_config={**SIZE, "vocab_size": 20}
            )
        ),
        "resnet": transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / name)
    convolutions = {"conv_dim": (16, 16), "conv_stride": (20, 16), "conv_kernel": (20, 16)}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    for kind in ("Wav2Vec2", "Hubert"):
        config = getattr(transformers, f"{kind}Config")(**SIZE, **convolutions, **positions, num_feat_extract_layers=2)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(root / kind.lower())
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(root / kind.lower())
    spectrogram = transformers.ASTConfig(**SIZE, num_mel_bins=32, max_length=64)
    transformers.ASTModel(spectrogram).save_pretrained(root / "ast")
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(root / "ast")
    transformers.WhisperFeatureExtractor().save_pretrained(root / "whisper")
    for name in ("config.json", "model.safetensors"):  # no weights are read, since a raw stream has no need of them
        shutil.copy(root / "vit" / name, root / "whisper" / name)
    return root


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    return write_talks(tmp_path_factory.mktemp("talks"), count=8)


@pytest.fixture(scope="module")
def data(talks, pretrained, tmp_path_factory):
    """Prepared with windows of sound and pixels in place of features."""
    out = tmp_path_factory.mktemp("raw") / "data"
    command = ["data", "prepare", talks, "--out", out, "--no-faces", "--workers", 1, "--audio-rate", 4, "--frames", 2]
    streams = ["--audio", f"raw:{pretrained / 'wav2vec2'}", "--vision", f"raw:{pretrained / 'vit'}"]
    result = CliRunner().invoke(app, [str(a) for a in (*command, *streams)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    model = train(Config.load(None, [*SETTINGS, f"data.path={data}"]), folder, progress=False)
    return folder, model


def pictures(count=3):
    return [np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8) for i in range(count)]


def read(raw, tokens):
    """Tokens as the encoder of the model makes them at first."""
    encoder = SignalEncoder.from_pretrained(raw.encoder, None, raw.shape).eval()
    with torch.no_grad():
        return encoder(tokens, Layout.of([len(tokens)]))


@pytest.mark.parametrize("name", ["vit", "clip", "resnet"])
def test_pictures_first_get_the_features_of_the_frozen_encoder(pretrained, name):
    raw = vision_encoder(f"raw:{pretrained / name}")
    tokens = raw(pictures())
    assert tokens.shape == (3, raw.width) == (3, 3 * 32 * 32)
    torch.testing.assert_close(read(raw.raw, tokens), vision_encoder(str(pretrained / name))(pictures()))


@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "ast"])
def test_windows_first_get_the_features_of_the_frozen_encoder(pretrained, name):
    raw, frozen = (audio_encoder(prefix + str(pretrained / name), rate=4) for prefix in ("raw:", ""))
    windows = [tone(0.25, hertz) for hertz in (300, 500, 900)]
    tokens = raw(np.concatenate(windows))
    assert tokens.shape == (3, raw.width)
    torch.testing.assert_close(read(raw.raw, tokens), torch.cat([frozen(window) for window in windows]))
    assert len(raw(np.concatenate([*windows, tone(0.01)]))) == 4  # nothing of the end is lost


def test_tokens_are_read_each_on_its_own_and_none_give_none(pretrained):
    raw = vision_encoder(f"raw:{pretrained / 'vit'}")
    encoder = SignalEncoder.from_pretrained(raw.raw.encoder, None, raw.raw.shape).eval()
    tokens = torch.randn(3, raw.width)
    with torch.no_grad():
        out = encoder(tokens, Layout.of([2, 0, 1]))
    torch.testing.assert_close(out[[0, 2]], read(raw.raw, tokens[[0, 2]]))
    assert encoder(tokens[:0], Layout.of([0, 0])).shape == (0, out.shape[1])


def test_words_are_read_utterance_by_utterance_whatever_shares_their_chunk(monkeypatch):
    monkeypatch.setitem(TOKENS_PER_CHUNK, "cpu", 12)
    encoder = TextEncoder(transformers.BertConfig(vocab_size=50, **SIZE).to_dict()).eval()
    ids, layout = torch.randint(0, 50, (27,)), Layout.of([3, 0, 9, 5, 1, 9])
    with torch.no_grad():
        found = encoder(ids, layout)
        alone = [encoder.model(words[None]).last_hidden_state[0] for words in ids.split([3, 9, 5, 1, 9])]
    torch.testing.assert_close(found, torch.cat(alone))


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_reach_the_chosen_layers_of_the_encoders_only(data, recompute):
    splits = load_splits(Config.load(None, [*SETTINGS, f"data.path={data}"]).data, progress=False)
    config = ModelConfig(d_model=16, num_heads=2, man_layers=1, encoder_layers=1)
    model = Amuse(config, splits.spec("minilm")).train()
    if recompute:
        model.recompute_activations()
    model(collate(splits.train.dialogues[:2], splits.train.modalities)).logits.square().sum().backward()
    for stream, encoder in model.encoders.items():
        reached = {name for name, p in encoder.model.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached, stream
        assert all("layers.1." in name for name in reached), reached
    rates = {group["lr"] for group in parameter_groups(model, TrainConfig(encoder_learning_rate=1e-5))}
    assert rates == {1e-5, TrainConfig().learning_rate}


def test_prepared_streams_are_raw_and_not_standardised(data, pretrained):
    config = Config.load(None, [*SETTINGS, f"data.path={data}"]).data
    splits = load_splits(config, progress=False)
    assert splits.raw == {
        "audio": RawStream(str(pretrained / "wav2vec2"), [4000]),
        "video": RawStream(str(pretrained / "vit"), [3, 32, 32]),
    }
    assert splits.standardizer.mean == {}
    assert set(splits.select(["video"]).raw) == {"video"}
    stored, used = (next(iter(part.utterances())) for part in (load_split(config, "train"), splits.train))
    assert torch.equal(stored.features["audio"], used.features["audio"])


def test_a_run_trains_its_encoders_and_loads_without_their_folders(run, data, pretrained, tmp_path, monkeypatch):
    folder, model = run
    test = load_splits(Config.load(None, [*SETTINGS, f"data.path={data}"]).data, progress=False).test
    for stream, name in (("audio", "wav2vec2"), ("video", "vit")):
        before = transformers.AutoModel.from_pretrained(pretrained / name).state_dict()
        after = model.encoders[stream].model.state_dict()
        moved = [key for key in after if not torch.equal(before[key], after[key])]
        assert any("layers.0." in key for key in moved), stream
    monkeypatch.setattr("amuse.encoders.trainable.pretrained_model", None)
    loaded, standardizer, _ = load_best(folder)
    assert torch.equal(predict(loaded, test).logits, predict(model, test).logits)
    session = StreamingSession(loaded, standardizer)
    streamed = torch.stack([session.push(utterance).logits for utterance in test.dialogues[0].utterances])
    expected = predict(loaded, test.subset([0])).logits
    torch.testing.assert_close(streamed.view_as(expected), expected, atol=1e-5, rtol=1e-4)


def test_predict_on_a_recording_says_what_the_prepared_data_say(run, data, talks, tmp_path):
    folder, model = run
    test = load_splits(Config.load(None, [*SETTINGS, f"data.path={data}"]).data, progress=False).test
    dialogue = test.dialogues[0]
    recording = next(path for path in talks.rglob("*.mp4") if path.stem == dialogue.id)
    rows = predict_recording(folder, recording, None, lambda problem: None)
    expected = predict(model, test.subset([0])).logits.argmax(dim=1).tolist()
    assert [row.emotion for row in rows] == [test.label_names[label] for label in expected]
    explained = CliRunner().invoke(
        app, ["explain", str(folder), str(recording), "--method", "occlusion", "--out", str(tmp_path / "why.html")]
    )
    assert explained.exit_code == 0, explained.output
    assert "video" in (tmp_path / "why.html").read_text()


def test_it_goes_into_transformers_and_back(run, data, tmp_path):
    from amuse.hf import AmuseConfig, AmuseForUtteranceClassification

    _, model = run
    wrapped = AmuseForUtteranceClassification(AmuseConfig.of(model))
    wrapped.amuse.load_state_dict(model.state_dict())
    wrapped.save_pretrained(tmp_path)
    loaded = AmuseForUtteranceClassification.from_pretrained(tmp_path).eval()
    test = load_splits(Config.load(None, [*SETTINGS, f"data.path={data}"]).data, progress=False).test
    assert torch.equal(predict(loaded.amuse, test).logits, predict(model, test).logits)


def test_encoders_that_cannot_be_trained_so_are_refused(pretrained, tmp_path):
    with pytest.raises(ValueError, match=r"audio_rate: 40 gives windows of 400 samples, expected at least 800"):
        audio_encoder(f"raw:{pretrained / 'wav2vec2'}", rate=40)
    with pytest.raises(ValueError, match="whisper pads every window to 30 s"):
        audio_encoder(f"raw:{pretrained / 'whisper'}", rate=1)
    shutil.copytree(pretrained / "vit", tmp_path / "free")
    transformers.ViTImageProcessor(do_resize=False).save_pretrained(tmp_path / "free")
    with pytest.raises(ValueError, match="keeps the shape of each picture"):
        vision_encoder(f"raw:{tmp_path / 'free'}")
    with pytest.raises(ValueError, match=r"raw: 'video' has inputs of shape \[3, 8, 8\], expected 192 numbers"):
        DataSpec({"video": 10}, raw={"video": RawStream("vit", [3, 8, 8])})
    with pytest.raises(ValueError, match="encoder_layers: expected a number of layers to train of 2 layers, got 3"):
        SignalEncoder.from_pretrained(str(pretrained / "vit"), 3, [3, 32, 32])
