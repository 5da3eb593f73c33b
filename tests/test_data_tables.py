"""Promises of own features as tables: what is written is read, empty cells, every mistake named with its place."""

import pytest
import torch

from amuse.config import Config
from amuse.data.load import guess_dataset, load_split, load_splits
from amuse.data.tables import read_tables

UTTERANCES = """dialogue,id,speaker,label,split,text,start,end,actor
one,a,Ann,joy,train,Hello there,0.5,1.5,7
one,b,Bob,anger,train,,2,3,7
two,c,Ann,,train,,,,8
three,d,Ann,joy,valid,,,,9
four,e,Cat,anger,test,,,,9
"""
AUDIO = """id,loud,pitch
a,1,10
a,3,
b,5,30
d,,40
e,9,
"""
VIDEO = "id,smile\nb,0.5\nc,0.25\nd,1\ne,2\n"


def write(folder, utterances=UTTERANCES, **features):
    folder.mkdir(exist_ok=True)
    (folder / "utterances.csv").write_text(utterances)
    for name, text in ({"audio": AUDIO, "video": VIDEO} | features).items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_tables_are_read_as_they_are_written(tmp_path):
    tables = read_tables(write(tmp_path))
    assert tables.label_names == ["anger", "joy"]
    assert tables.widths == {"audio": 2, "video": 1}
    train = tables.split("train")
    assert [[u.id for u in dialogue.utterances] for dialogue in train.dialogues] == [["a", "b"], ["c"]]
    first, second, third = train.utterances()
    assert (first.speaker, first.label, first.text, first.start, first.end) == ("Ann", 1, "Hello there", 0.5, 1.5)
    assert (second.label, second.text, third.label) == (0, None, None)
    assert torch.equal(first.features["audio"][:, 0], torch.tensor([1.0, 3.0]))
    assert "video" not in first.features
    assert "audio" not in third.features
    assert [u.id for u in tables.split("test").utterances()] == ["e"]


def test_an_empty_cell_is_the_mean_of_the_training_part_only(tmp_path):
    tables = read_tables(write(tmp_path))
    loud, pitch = (1 + 3 + 5) / 3, (10 + 30) / 2
    assert tables.split("train").dialogues[0].utterances[0].features["audio"].tolist() == [[1, 10], [3, pitch]]
    assert tables.split("valid").dialogues[0].utterances[0].features["audio"].tolist() == [[loud, 40]]
    assert tables.split("test").dialogues[0].utterances[0].features["audio"].tolist() == [[9, pitch]]
    other = tables.conversations(["four"], training=["one", "three"])
    with pytest.raises(ValueError, match=r"audio\.csv, column 2: expected a number in the training part, found none"):
        read_tables(write(tmp_path / "sub", audio="id,loud\na,\nd,1\n")).split("train")
    assert other.dialogues[0].utterances[0].features["audio"][0, 1].item() == pytest.approx((10 + 30 + 40) / 3)


def test_a_target_makes_it_a_regression(tmp_path):
    text = UTTERANCES.replace("label", "target").replace("joy", "4.5").replace("anger", "-1")
    tables = read_tables(write(tmp_path, text))
    assert tables.label_names is None
    assert [u.label for u in tables.split("train").utterances()] == [4.5, -1.0, None]


def test_the_configuration_finds_them_by_their_folder(tmp_path):
    config = Config.load(None, [f"data.dataset={guess_dataset(write(tmp_path))}", f"data.path={tmp_path}"]).data
    assert config.dataset == "tables"
    splits = load_splits(config)
    assert splits.train.modalities == {"audio": 2, "video": 1}
    train = torch.cat([u.features["audio"] for u in splits.train.utterances() if "audio" in u.features])
    assert train.mean(0).abs().max() < 1e-6
    config.modalities = ["video"]
    assert load_split(config, "test").modalities == {"video": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"utterances": "id,label\na,joy\n"}, r"utterances\.csv, line 1: expected distinct columns, dialogue and id"),
        ({"utterances": "dialogue,id\no,a\n"}, r"line 1: expected a column label \(classes\) or target \(numbers\)"),
        ({"utterances": "dialogue,id,label,target\no,a,x,1\n"}, "got both"),
        ({"utterances": "dialogue,id,target\no,a,high\n"}, "line 2, target: expected a number, got 'high'"),
        ({"utterances": "dialogue,id,target\no,a,nan\n"}, "line 2, target: expected a number, got 'nan'"),
        ({"utterances": "dialogue,id,label\no,a\n"}, "line 2: expected 3 cells"),
        ({"utterances": "dialogue,id,label\no,a,b,c\n"}, "line 2: expected 3 cells"),
        ({"utterances": 'dialogue,id,label\no,a,"b\n'}, "not a CSV file"),
        ({"utterances": "dialogue,id,label,split\no,a,x,dev\n"}, "line 2, split: expected train, valid or test"),
        ({"utterances": UTTERANCES + "one,f,Ann,joy,test,,,,7\n"}, "dialogue 'one' has rows in 'train' and in 'test'"),
        ({"utterances": UTTERANCES + "one,a,Ann,joy,train,,,,7\n"}, "expected distinct utterance ids"),
        ({"audio": "id,loud\nzz,1\n"}, r"audio\.csv, line 2: expected an id of utterances\.csv, got 'zz'"),
        ({"audio": "id,loud\na,x\n"}, r"audio\.csv, line 2, loud: expected a number, got 'x'"),
        ({"audio": "id,loud\na,inf\n"}, "expected a number, got 'inf'"),
        ({"audio": "id\na\n"}, "expected columns of numbers besides id"),
        (
            {"utterances": "dialogue,id,label\no,a,Joy\no,b,joy\n"},
            "expected one spelling of each class, got 'Joy', 'joy'",
        ),
        ({"audio": "id,loud,loud\na,1,2\n"}, "expected distinct columns"),
        ({"audio": ""}, "line 1: expected distinct columns"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_tables(write(tmp_path, **change)).split("train")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"utterances\.csv: no such file"):
        read_tables(tmp_path)
    (tmp_path / "utterances.csv").write_text("dialogue,id,label\no,a,x\n")
    with pytest.raises(FileNotFoundError, match="expected a table of features"):
        read_tables(tmp_path)
    (tmp_path / "audio.csv").write_text("id,loud\na,1\n")
    with pytest.raises(ValueError, match=r"split says 'train', found none; without splits use cross-validation"):
        read_tables(tmp_path).split("train")


def test_tokens_keep_the_order_of_their_rows(tmp_path):
    audio = "id,x\n" + "".join(f"{'ab'[i % 2]},{i}\n" for i in range(8))
    tables = read_tables(write(tmp_path, audio=audio))
    assert tables.features["audio"]["a"][:, 0].tolist() == [0, 2, 4, 6]
