import pytest
import torch

from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.mosi import MODALITIES, read_mosi
from amuse.data.standardize import Standardizer

# four training videos of three segments and a test video; segment 10 comes before 2 in the files, as upstream
SEGMENTS = [(video, segment) for video in ("a_b", "c", "d", "e", "t") for segment in (1, 10, 2)]
LABELS = [0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0]


def value(line, modality):
    return line + {"text": 0.25, "audio": 0.5, "video": 0.75}[modality]


def write(folder):
    names = [f"{video}_{segment}" for video, segment in SEGMENTS]
    rows = [f'"{name}","WORDS, {i}","1","{LABELS[i]}"\n' for i, name in enumerate(names)]
    (folder / "transcripts.csv").write_text("".join(rows))
    for part, lines in (("train", range(12)), ("test", range(12, 15))):
        by_label = sorted(lines, key=lambda i: -LABELS[i])
        (folder / f"index_{part}.txt").write_text("".join(f"{i}\n" for i in by_label))
        for modality, width in MODALITIES.items():
            rows = [",".join([f'"{value(i, modality)}"'] * width + [f'"{LABELS[i]}"']) for i in by_label]
            (folder / f"{modality}_{part}0.csv").write_text("\n".join(rows) + "\n")
    return folder


def edit(path, line, text):
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")


def test_rows_meet_their_transcripts_in_the_order_of_segments(tmp_path):
    split = read_mosi(write(tmp_path), "train+valid")
    assert split.modalities == MODALITIES
    assert [dialogue.id for dialogue in split.dialogues] == ["a_b", "c", "d", "e"]
    first = split[0].utterances
    # not the order of the files, which is by label and would tell it to a model that reads context
    assert [u.id for u in first] == ["a_b_1", "a_b_2", "a_b_10"]
    assert [u.label for u in first] == [0, 1, 1]
    assert [u.text for u in first] == ["WORDS, 0", "WORDS, 2", "WORDS, 1"]
    for modality, width in MODALITIES.items():
        assert torch.equal(first[1].features[modality], torch.full((1, width), value(2, modality)))


def test_validation_videos_are_held_out_by_seed(tmp_path):
    write(tmp_path)
    train = {d.id for d in read_mosi(tmp_path, "train", valid_fraction=0.5, seed=1).dialogues}
    valid = {d.id for d in read_mosi(tmp_path, "valid", valid_fraction=0.5, seed=1).dialogues}
    assert len(train) == len(valid) == 2
    assert not train & valid
    assert len({tuple(d.id for d in read_mosi(tmp_path, "valid", seed=seed).dialogues) for seed in range(20)}) > 1
    assert [d.id for d in read_mosi(tmp_path, "test").dialogues] == ["t"]


@pytest.mark.parametrize(
    ("file", "line", "text", "message"),
    [
        ("index_train.txt", 2, "99", "index_train.txt, line 2: expected a row of transcripts.csv from 0 to 14"),
        ("index_train.txt", 2, "1", "index_train.txt, line 2: .* each once, got '1'"),
        ("text_train0.csv", 3, "1,2,3", "text_train0.csv, line 3: expected 100 features and a label, got 3 cells"),
        ("audio_train0.csv", 1, ",".join(["x"] * 74), "audio_train0.csv, line 1: expected numbers"),
        ("audio_train0.csv", 1, ",".join(["0"] * 74), "audio_train0.csv, line 1: expected label 1"),
        ("video_train0.csv", 1, ",".join(["nan"] * 100 + ["1"]), "line 1: expected finite numbers"),
        ("transcripts.csv", 1, '"a_b_1","WORDS","1","2"', "transcripts.csv, line 1: .* label 0 or 1"),
        ("transcripts.csv", 1, '"nosegment","WORDS","1","1"', "transcripts.csv, line 1: expected a segment name"),
    ],
)
def test_malformed_files_are_refused_with_file_and_line(tmp_path, file, line, text, message):
    edit(write(tmp_path) / file, line, text)
    with pytest.raises(ValueError, match=message):
        read_mosi(tmp_path, "train+valid")


def test_missing_rows_files_and_arguments_are_refused(tmp_path):
    write(tmp_path)
    index = tmp_path / "index_train.txt"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"text_train0\.csv: expected 11 lines, as many as the index has, got 12"):
        read_mosi(tmp_path, "train")
    with pytest.raises(ValueError, match="split: expected"):
        read_mosi(tmp_path, "dev")
    with pytest.raises(ValueError, match="valid_fraction: expected"):
        read_mosi(tmp_path, "train", valid_fraction=1.0)
    (tmp_path / "audio_test0.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"audio_test0\.csv"):
        read_mosi(tmp_path, "test")


def column(*rows):
    tokens = torch.tensor(rows, dtype=torch.float32)
    utterances = [Utterance(f"u{i}", "Ada", {"x": tokens[i : i + 1]}, 0) for i in range(len(tokens))]
    return Conversations([Dialogue("d", [*utterances, Utterance("absent", "Ada", {}, 0)])], ["a"], {"x": 2})


def tokens_of(split):
    return torch.cat([u.features["x"] for u in split.utterances() if "x" in u.features])


def test_standardised_training_features_have_mean_0_and_deviation_1():
    split = column([1.0, 3.3], [2.0, 3.3], [6.0, 3.3])
    scaled = tokens_of(Standardizer.fit(split).apply(split))
    assert scaled[:, 0].mean() == pytest.approx(0, abs=1e-6)
    assert scaled[:, 0].std(correction=0) == pytest.approx(1)


def test_constant_features_become_0_and_outliers_are_clipped():
    standardizer = Standardizer.fit(column([1.0, 3.3], [2.0, 3.3], [6.0, 3.3]), clip=2.0)
    scaled = tokens_of(standardizer.apply(column([1e6, 3.3], [-1e6, 3.3])))
    assert scaled.tolist() == [[2.0, 0.0], [-2.0, 0.0]]


def test_standardizer_survives_a_state_dict():
    standardizer = Standardizer.fit(column([1.0, 3.3], [2.0, 3.4], [6.0, 3.3]), clip=None)
    state = standardizer.state_dict()
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    again = Standardizer.from_state_dict(state)
    other = column([5.0, -8.0])
    assert torch.equal(tokens_of(again.apply(other)), tokens_of(standardizer.apply(other)))
    with pytest.raises(ValueError, match="'surprise'"):
        Standardizer.from_state_dict({**state, "surprise": torch.ones(1)})


def test_standardizer_refuses_other_widths_and_empty_modalities():
    standardizer = Standardizer({"y": torch.zeros(2)}, {"y": torch.ones(2)})
    with pytest.raises(ValueError, match="modality 'y': expected width 2, as fitted, got None"):
        standardizer.apply(column([1.0, 2.0]))
    with pytest.raises(ValueError, match="at least one token"):
        Standardizer.fit(Conversations([Dialogue("d", [Utterance("u", "Ada", {}, 0)])], ["a"], {"x": 2}))
    with pytest.raises(ValueError, match="feature modalities"):
        Standardizer.fit(column([1.0, 2.0]), modalities=["y"])
