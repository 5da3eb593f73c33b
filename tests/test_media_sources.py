import shutil
from collections import Counter

import pytest
from typer.testing import CliRunner

pytest.importorskip("av", reason="needs the extra: pip install amuse-kernels[media]")

from amuse.cli.main import app
from amuse.data.iemocap import read_iemocap
from amuse.data.problems import problem_table
from amuse.data.transcript import read_transcript
from amuse.media.sources import Span, folder_source, iemocap_source, meld_source
from tests.media_files import HEADER, write_iemocap, write_meld, write_talks, write_video

CSV = "start,end,speaker,text,label\n"


def kinds(source):
    return dict(Counter(problem.kind for problem in source.problems))


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory):
    return write_iemocap(tmp_path_factory.mktemp("iemocap"))


def transcript(tmp_path, content, suffix=".csv"):
    path = tmp_path / f"talk{suffix}"
    path.write_text(content, encoding="utf-8")
    problems = []
    return read_transcript(path, problems.append), problems


def test_cartoon_talks_are_a_folder_to_prepare(tmp_path):
    result = CliRunner().invoke(app, ["data", "cartoon", "--out", str(tmp_path), "--talks", "1", "--utterances", "2"])
    assert result.output == f"1 talks; next: amuse data prepare {tmp_path} --out DATA --no-faces\n"
    source = folder_source(tmp_path)
    assert not source.problems
    assert source.splits["test"].num_utterances == 2


def test_meld_clips_are_found_by_their_names(tmp_path):
    source = meld_source(write_meld(tmp_path))
    assert list(source.splits) == list(source.clips) == ["train", "valid", "test"]
    assert source.problems == []
    clip = source.clips["valid"][4]
    assert clip.utterance == [u.id for u in source.splits["valid"].utterances()][4] == "dia1_utt1"
    assert clip.sound == clip.picture == Span(tmp_path / "dev_splits_complete" / "dia1_utt1.mp4")
    assert clip.seconds == 1.0


def test_meld_in_folders_of_the_splits_is_found_too(tmp_path):
    write_meld(tmp_path)
    (tmp_path / "train").mkdir()
    for name in ("train_splits", "train_sent_emo.csv"):
        shutil.move(tmp_path / name, tmp_path / "train" / name)
    assert meld_source(tmp_path).clips["train"][0].sound.path.is_file()
    shutil.rmtree(tmp_path / "output_repeated_splits_test")
    with pytest.raises(FileNotFoundError, match="expected output_repeated_splits_test in it or one folder below"):
        meld_source(tmp_path)


def test_missing_and_stray_clips_of_meld_are_reported(tmp_path):
    write_meld(tmp_path)
    (tmp_path / "dev_splits_complete" / "dia0_utt1.mp4").unlink()
    stray = tmp_path / "output_repeated_splits_test" / "final_videos_testdia101_utt0.mp4"
    shutil.copy(tmp_path / "train_splits" / "dia0_utt0.mp4", stray)
    (stray.parent / "._dia0_utt0.mp4").write_bytes(b"\x00\x05")  # macOS leaves such files in archives
    source = meld_source(tmp_path)
    missing, extra = source.problems
    assert (missing.kind, missing.place) == ("missing_file", "valid dia0_utt1")
    assert (extra.kind, extra.place) == ("stray_file", "output_repeated_splits_test/final_videos_testdia101_utt0.mp4")
    assert source.clips["valid"][1].sound is None
    assert source.splits["valid"].num_utterances == 6


def test_bad_rows_of_meld_are_left_out_and_reported(tmp_path):
    write_meld(tmp_path)
    table = tmp_path / "train_sent_emo.csv"
    rows = [
        '90,Again,Ann,joy,neutral,0,0,1,1,"00:00:01,000","00:00:02,000"\n',
        '91,Nobody,,joy,neutral,9,0,1,1,"00:00:01,000","00:00:02,000"\n',
        '92,Bored,Ann,bored,neutral,9,1,1,1,"00:00:01,000","00:00:02,000"\n',
        "93,Short,Ann\n",
        '94,When,Ann,joy,neutral,9,2,1,1,"soon","00:00:02,000"\n',
    ]
    table.write_text(table.read_text(encoding="utf-8") + "".join(rows), encoding="utf-8")
    source = meld_source(tmp_path)
    assert kinds(source) == {"duplicate_id": 1, "bad_row": 4}
    assert source.splits["train"].num_utterances == 6
    messages = " ".join(problem.message for problem in source.problems)
    for part in (
        "line 8",
        "Speaker: expected a name",
        "got 'bored'",
        "expected 11 cells",
        "StartTime: expected a time",
    ):
        assert part in messages or any(part in problem.place for problem in source.problems)
    table.write_bytes((HEADER + "1,he\x92s,Ann").encode("cp1252", errors="ignore") + b"\x92")
    with pytest.raises(ValueError, match="line 2: expected UTF-8, got byte 0x92"):
        meld_source(tmp_path)


def test_iemocap_splits_labels_and_speakers_follow_the_protocol(iemocap):
    splits = read_iemocap(iemocap, valid_fraction=0.25)
    assert {split: len(part) for split, part in splits.items()} == {"train": 3, "valid": 1, "test": 2}
    assert splits["test"].label_names == ["happy", "sad", "neutral", "angry", "excited", "frustrated"]
    assert {d.id for d in splits["test"].dialogues} == {"Ses05F_impro01", "Ses05M_impro01"}
    utterances = splits["test"][0].utterances
    assert [splits["test"].label_names[u.label] for u in utterances] == ["happy", "excited", "angry", "neutral", "sad"]
    assert [u.id[-4:] for u in utterances] == ["F000", "M001", "F002", "M003", "M005"]  # F004 is xxx
    assert [u.speaker for u in utterances[:2]] == ["Ses05_F", "Ses05_M"]
    assert (utterances[4].text, utterances[4].start, utterances[4].end) == ("Line 5.", 2.5, 3.0)
    four = read_iemocap(iemocap, classes=4)["test"]
    assert four.label_names == ["happy", "sad", "neutral", "angry"]
    assert [four.label_names[u.label] for u in four[0].utterances][:2] == ["happy", "happy"]


def test_iemocap_validation_dialogues_depend_on_the_seed_only(iemocap):
    drawn = {seed: read_iemocap(iemocap, seed=seed)["valid"][0].id for seed in range(8)}
    assert drawn == {seed: read_iemocap(iemocap, seed=seed)["valid"][0].id for seed in range(8)}
    assert len(set(drawn.values())) > 1
    with pytest.raises(ValueError, match="valid_fraction: expected"):
        read_iemocap(iemocap, valid_fraction=0)
    with pytest.raises(ValueError, match="classes: expected one of 4, 6, got 5"):
        read_iemocap(iemocap, classes=5)


def test_iemocap_sound_is_the_sentence_and_picture_the_half_of_the_speaker(iemocap):
    source = iemocap_source(iemocap)
    assert source.problems == []
    assert "test = session 5; valid = 1 of 4 dialogues" in source.protocol
    clips = {clip.utterance: clip for part in source.clips.values() for clip in part}
    clip = clips["Ses05F_impro01_M003"]
    session = iemocap / "Session5"
    assert clip.sound == Span(session / "sentences/wav/Ses05F_impro01/Ses05F_impro01_M003.wav")
    assert clip.picture == Span(session / "dialog/avi/DivX/Ses05F_impro01.avi", 1.5, 2.0)
    assert (clip.half, clips["Ses05F_impro01_F000"].half, clips["Ses05M_impro01_M001"].half) == (
        "right",
        "left",
        "left",
    )
    whole = iemocap_source(iemocap, whole_frame=True)
    assert {clip.half for part in whole.clips.values() for clip in part} == {None}


def test_faults_of_iemocap_are_reported(tmp_path):
    write_iemocap(tmp_path, sessions=(1, 5))
    dialog = tmp_path / "Session1" / "dialog"
    (dialog / "avi" / "DivX" / "Ses01F_impro01.avi").unlink()
    (tmp_path / "Session1/sentences/wav/Ses01M_impro01/Ses01M_impro01_M001.wav").unlink()
    texts = dialog / "transcriptions" / "Ses01F_impro01.txt"
    texts.write_text(texts.read_text().replace("Ses01F_impro01_F002", "Ses01F_impro01_X"))
    table = dialog / "EmoEvaluation" / "Ses01F_impro01.txt"
    again = "[0.5000 - 1.0000]\tSes01F_impro01_M001\texc\t[2.5000, 2.5000, 2.5000]\n"
    table.write_text(table.read_text() + "[1.0 - \tbroken\n" + again)
    source = iemocap_source(tmp_path)
    assert kinds(source) == {"missing_file": 5 + 1, "missing_text": 1, "bad_row": 1, "duplicate_id": 1}
    with pytest.raises(ValueError, match="expected '\\[start - end\\] id label'"):
        read_iemocap(tmp_path)
    shutil.rmtree(tmp_path / "Session5")
    with pytest.raises(FileNotFoundError, match="expected Session5 with dialog/EmoEvaluation"):
        iemocap_source(tmp_path)


def test_csv_transcript_is_read_in_the_order_of_time(tmp_path):
    rows = (
        'End,Start,Speaker,Text,Label\n2.5,1.25,Bob,"Well, yes",\n00:01.2,0,Ann,No,angry\n1:02:03.5,"1:02:01,5",,Hm,\n'
    )
    lines, problems = transcript(tmp_path, rows)
    assert [(line.start, line.end, line.speaker, line.text, line.label) for line in lines] == [
        (0.0, 1.2, "Ann", "No", "angry"),
        (1.25, 2.5, "Bob", "Well, yes", None),
        (3721.5, 3723.5, "unknown", "Hm", None),
    ]
    assert [problem.kind for problem in problems] == ["missing_speaker"]
    assert "line 4" in problems[0].place


def test_srt_transcript_names_speakers_before_the_words(tmp_path):
    srt = (
        "1\n00:00:01,000 --> 00:00:02,500\nAnn: <i>Hello</i>\nthere\n\n"
        "2\n00:00:02,500 --> 00:00:03,000\n[Dr. Bob]: No: never\n\n3\n00:00:03,100 --> 00:00:04,000\nHm\n"
    )
    lines, problems = transcript(tmp_path, srt, ".srt")
    assert [(line.start, line.end, line.speaker, line.text) for line in lines] == [
        (1.0, 2.5, "Ann", "Hello there"),
        (2.5, 3.0, "Dr. Bob", "No: never"),
        (3.1, 4.0, "unknown", "Hm"),
    ]
    assert [problem.kind for problem in problems] == ["missing_speaker"]


def test_faulty_lines_of_a_transcript_are_reported(tmp_path):
    rows = "0,1,Ann,a,,x\n1,2,Ann,b,,x\n1,later,Ann,c,,\n3,2,Ann,d,,\n0.5,1.5,Bob,e,,\n"
    lines, problems = transcript(tmp_path, "start,end,speaker,text,label,id\n" + rows)
    assert [line.id for line in lines] == ["x", "talk_1"]
    assert [problem.kind for problem in problems] == ["duplicate_id", "bad_row", "bad_row", "overlap"]
    assert "got 'later'" in problems[1].message
    assert "talk_1 begins 0.50 s before x ends" in problems[3].message


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        (b"start,end\n0,1,\x92", ".csv", "line 2: expected UTF-8, got byte 0x92"),
        (b"when,end\n0,1", ".csv", "got no start"),
        (b"Hello", ".srt", "expected subtitles"),
        (b"", ".txt", r"expected a transcript ending in .csv, .tsv, .srt"),
    ],
)
def test_unusable_transcripts_are_refused(tmp_path, content, suffix, message):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_transcript(tmp_path / f"a{suffix}", print)


def test_folder_is_split_by_conversation(tmp_path):
    write_talks(tmp_path, count=8)
    source = folder_source(tmp_path)
    parts = {split: {dialogue.id for dialogue in part.dialogues} for split, part in source.splits.items()}
    assert {split: len(ids) for split, ids in parts.items()} == {"train": 6, "valid": 1, "test": 1}
    assert set.union(*parts.values()) == {f"talk{i}" for i in range(8)}
    assert source.splits["train"].label_names == ["angry", "calm"]
    assert folder_source(tmp_path).protocol == source.protocol
    clip = source.clips["test"][1]
    assert clip.sound == clip.picture
    assert (clip.sound.begin, clip.sound.end) == (0.5, 1.0)


def test_folders_named_for_splits_are_kept(tmp_path):
    write_talks(tmp_path / "train", count=2, labels=("calm", "glad"))
    write_talks(tmp_path / "test", count=1)
    source = folder_source(tmp_path)
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 2, "test": 1}
    assert source.splits["test"].label_names == ["angry", "calm", "glad"]
    assert "as given by its folders" in source.protocol
    assert source.clips["test"][0].sound.path == tmp_path / "test" / "talk0.mp4"


def test_faults_of_a_folder_are_reported(tmp_path):
    write_talks(tmp_path, count=4)
    (tmp_path / "talk0.csv").unlink()
    (tmp_path / "talk1.csv").write_bytes(b"start,end\n0,1,\x92")
    (tmp_path / "talk2.csv").write_text(CSV + "1,0,Ann,x,y\n")
    shutil.copy(tmp_path / "talk3.mp4", tmp_path / "talk3.mkv")
    source = folder_source(tmp_path)
    assert kinds(source) == {"missing_transcript": 1, "bad_transcript": 2, "bad_row": 1, "stray_file": 1}
    assert {split: len(part) for split, part in source.splits.items()} == {"test": 1}
    table = problem_table(source.problems)
    assert "talk1.csv" in table
    assert table.index("bad_transcript") < table.index("stray_file")  # losses first


def test_folder_without_a_usable_recording_is_refused_with_the_reasons(tmp_path):
    write_video(tmp_path / "a.mp4")
    with pytest.raises(FileNotFoundError, match=r"expected recordings(.|\n)*missing_transcript(.|\n)*a.mp4"):
        folder_source(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        folder_source(tmp_path / "nowhere")


def test_published_meld_without_its_clips_is_all_missing(shared_data, tmp_path):
    for part in ("train", "dev", "test"):
        shutil.copy(shared_data / "meld" / f"{part}_sent_emo.csv", tmp_path)
    for name in ("train_splits", "dev_splits_complete", "output_repeated_splits_test"):
        (tmp_path / name).mkdir()
    source = meld_source(tmp_path)
    assert kinds(source) == {"missing_file": 9989 + 1109 + 2610}
    assert max(clip.seconds or 0 for clip in source.clips["test"]) == pytest.approx(304.9, abs=0.1)
    assert sum(clip.seconds is None for part in source.clips.values() for clip in part) >= 1
