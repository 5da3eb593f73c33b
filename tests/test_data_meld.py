import logging

import pytest
import torch
from safetensors.torch import save_file

from amuse.data.meld import EMOTIONS, read_meld
from tests.batches import missing_counts

HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
ROWS = [
    '1,"Oh my God, he’s lost it.",Phoebe,sadness,negative,0,0,4,7,"00:20:57,256","00:21:00,049"\n',
    '2,What?,Monica,surprise,negative,0,1,4,7,"00:21:01,927","00:21:03,261"\n',
    '3,Or! Or,Ross,neutral,neutral,1,5,4,4,"0:12:24,66","00:12:30,915"\n',
    '4,Earlier,Ross,anger,negative,1,3,4,4,"01:12:24,660","01:12:30,915"\n',
]


def write(folder, rows=ROWS, header=HEADER, split="dev", encoding="utf-8"):
    (folder / f"{split}_sent_emo.csv").write_bytes((header + "".join(rows)).encode(encoding))
    return folder


def test_dialogues_labels_speakers_and_times_are_read(tmp_path):
    split = read_meld(write(tmp_path), "dev")
    assert [dialogue.id for dialogue in split.dialogues] == ["dia0", "dia1"]
    first = split[0].utterances[0]
    assert (first.id, first.speaker, first.text) == ("dia0_utt0", "Phoebe", "Oh my God, he’s lost it.")
    assert EMOTIONS[first.label] == "sadness"
    assert (first.start, first.end) == pytest.approx((1257.256, 1260.049))
    assert split.label_names == list(EMOTIONS)


def test_gaps_in_utterance_ids_are_kept_as_order(tmp_path):
    split = read_meld(write(tmp_path), "dev")
    assert [u.id for u in split[1].utterances] == ["dia1_utt3", "dia1_utt5"]
    assert split[1].utterances[1].start == pytest.approx(744.66)


def test_sentiment_is_a_target_too(tmp_path):
    split = read_meld(write(tmp_path), "dev", target="sentiment")
    assert split.label_names == ["neutral", "positive", "negative"]
    assert [u.label for u in split.utterances()] == [2, 2, 2, 0]


@pytest.mark.parametrize(
    ("broken", "fixed"),
    [("he\x92s", "he’s"), ("wait\x85", "wait…"), ("heâ€™s", "he’s"), ("NestlÃ©", "Nestlé"), ("sautéed â", "sautéed â")],
)
def test_broken_punctuation_is_fixed_and_sound_text_kept(tmp_path, broken, fixed):
    row = ROWS[1].replace("What?", broken).replace("Monica", broken)
    utterance = read_meld(write(tmp_path, [row]), "dev")[0].utterances[0]
    assert (utterance.text, utterance.speaker) == (fixed, fixed)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('5,x,Ross,bored,neutral,2,0,4,4,"0:12:24,660","0:12:30,915"\n', "line 6, Emotion: expected one of .* 'bored'"),
        ('5,x,Ross,anger,neutral,0,1,4,4,"0:12:24,660","0:12:30,915"\n', "line 6: .*0 with Utterance_ID 1 .* twice"),
        ('5,x,Ross,anger,neutral,-1,1,4,4,"0:12:24,660","0:12:30,915"\n', "line 6, Dialogue_ID: expected .* '-1'"),
        ('5,x,Ross,anger,neutral,2,0,4,4,"12.5","0:12:30,915"\n', "line 6, StartTime: expected a time"),
        ('5,x,,anger,neutral,2,0,4,4,"0:12:24,660","0:12:30,915"\n', "line 6, Speaker: expected a name"),
        ("5,x,Ross,anger\n", "line 6: expected 11 cells"),
        ('5,"a "quoted" word, here, too",x,y,z,Ross,anger,neutral,2,0,4,4,a,b,c\n', "line 6: expected 11 cells"),
    ],
)
def test_malformed_row_is_refused_with_file_and_line(tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"dev_sent_emo\.csv, {message}"):
        read_meld(write(tmp_path, [*ROWS, row]), "dev")


def test_wrong_encoding_is_refused_with_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"dev_sent_emo\.csv, line 2: expected UTF-8, got byte 0x92"):
        read_meld(write(tmp_path, encoding="cp1252"), "dev")


def test_missing_column_file_and_rows_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train_sent_emo\.csv"):
        read_meld(tmp_path, "train")
    with pytest.raises(ValueError, match="got no Emotion"):
        read_meld(write(tmp_path, header=HEADER.replace("Emotion", "Feeling")), "dev")
    with pytest.raises(ValueError, match="expected at least one utterance below the header"):
        read_meld(write(tmp_path, rows=[]), "dev")
    with pytest.raises(ValueError, match="split: expected one of"):
        read_meld(tmp_path, "valid")
    with pytest.raises(ValueError, match="target: expected one of"):
        read_meld(tmp_path, "dev", target="mood")


def test_features_are_attached_and_absent_and_stray_entries_reported(tmp_path, caplog):
    tokens = {"dia0_utt0": torch.ones(5, 3), "dia1_utt3": torch.ones(3).half(), "dia9_utt9": torch.ones(1, 3)}
    save_file(tokens, tmp_path / "audio_dev.safetensors")
    with caplog.at_level(logging.WARNING):
        split = read_meld(write(tmp_path), "dev", features={"audio": tmp_path / "audio_{split}.safetensors"})
    assert split.modalities == {"audio": 3}
    assert split[0].utterances[0].features["audio"].shape == (5, 3)
    assert split[1].utterances[0].features["audio"].shape == (1, 3)
    assert split[1].utterances[0].features["audio"].dtype == torch.float32
    assert missing_counts(split) == {"audio": 2}
    assert "2 of 4 utterances have no audio" in caplog.text
    assert "1 entries belong to no utterance and are left out: dia9_utt9" in caplog.text


def test_unreadable_features_are_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match=r"features\['audio'\]: .*no such file"):
        read_meld(tmp_path, "dev", features={"audio": path})
    path.write_bytes(b"\x80\x04 this is a pickle, not safetensors")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        read_meld(tmp_path, "dev", features={"audio": path})
    for wrong, message in [
        ({"dia0_utt0": torch.ones(3, dtype=torch.int64)}, r"key 'dia0_utt0': expected floating .* torch.int64"),
        ({"dia0_utt0": torch.ones(2, 3), "dia0_utt1": torch.ones(2, 4)}, r"'dia0_utt.', features\['audio'\]: expected"),
        ({"dia0_utt0": torch.full((2, 3), float("nan"))}, "NaN"),
    ]:
        save_file(wrong, path)
        with pytest.raises(ValueError, match=message):
            read_meld(tmp_path, "dev", features={"audio": path})
