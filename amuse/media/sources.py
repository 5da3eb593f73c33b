"""Finds the media of every utterance, in the layout of each kind of data set."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from amuse.data.conversation import Conversations, Utterance
from amuse.data.folder import AUDIO, read_folder, split_folders
from amuse.data.hub import read_hub_dataset
from amuse.data.hub_files import dataset_folder
from amuse.data.iemocap import PROTOCOLS, read_iemocap
from amuse.data.meld import read_meld
from amuse.data.problems import Problem, ProblemHandler, problem_table
from amuse.data.transcript import Line
from amuse.encoders.text import TokenSequence

MELD_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}


@dataclass(frozen=True)
class Span:
    """A part of a media file, in seconds; `end` None = to its end."""

    path: Path
    begin: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class Clip:
    """The media of one utterance.

    Attributes:
        utterance: Its id.
        sound, picture: Where they are; None = missing.
        half: "left" or "right" half of the frame, if the other one shows somebody else.
        seconds: Length of the utterance by its transcript, if the spans do not have it.
        words: The text encoder's input, if words are encoded.
    """

    utterance: str
    sound: Span | None
    picture: Span | None
    half: str | None = None
    seconds: float | None = None
    words: TokenSequence | None = None


@dataclass
class Source:
    """Conversations without features, and the clips to make features from.

    Attributes:
        folder: Its location.
        splits: "train", "valid", "test" -> conversations with texts, speakers, labels and times.
        clips: The same splits -> one clip per utterance, in the order of `utterances()`.
        protocol: How splits and classes were made, in words.
        problems: Those found so far.
    """

    folder: Path
    splits: dict[str, Conversations]
    clips: dict[str, list[Clip]]
    protocol: str
    problems: list[Problem] = field(default_factory=list)


def meld_source(folder: Path) -> Source:
    """MELD as its authors publish it: CSVs and folders with one mp4 per utterance, in `folder` or one level below.

    Raises:
        FileNotFoundError: A CSV or a folder of clips is missing.
        ValueError: A CSV that cannot be read, see `read_meld`.
    """
    source = Source(folder, {}, {}, "MELD's own splits; dev is called valid")
    for split, name in MELD_FOLDERS.items():
        table, media = _locate(folder, f"{split}_sent_emo.csv"), _locate(folder, name)
        conversations = read_meld(table.parent, split, report=source.problems.append)
        found = {path.stem: path for path in media.glob("*.mp4") if not path.name.startswith(".")}
        part = "valid" if split == "dev" else split
        clips = []
        for utterance in conversations.utterances():
            path = found.pop(utterance.id, None)
            if path is None:
                message = f"expected {name}/{utterance.id}.mp4"
                source.problems.append(Problem("missing_file", f"{part} {utterance.id}", message))
            span = None if path is None else Span(path)
            clips.append(Clip(utterance.id, span, span, seconds=_seconds(utterance)))
        for path in sorted(found.values()):
            source.problems.append(Problem("stray_file", f"{name}/{path.name}", f"{table.name} has no such utterance"))
        source.splits[part], source.clips[part] = conversations, clips
    return source


def iemocap_source(
    folder: Path, classes: int = 6, valid_fraction: float = 0.1, seed: int = 0, whole_frame: bool = False
) -> Source:
    """IEMOCAP's full release; the sound from `sentences/wav`, the picture from `dialog/avi/DivX`.

    A frame shows both actors side by side. The one who wears the motion capture markers, after whom the dialogue is
    named (F in Ses01F_impro01), is taken to sit on the left; the speaker's half is used, unless `whole_frame`.

    Raises:
        FileNotFoundError, ValueError: See `read_iemocap`.
    """
    source = Source(folder, {}, {}, "")
    source.splits = read_iemocap(
        folder, classes=classes, valid_fraction=valid_fraction, seed=seed, report=source.problems.append
    )
    valid, training = len(source.splits["valid"]), len(source.splits["train"])
    source.protocol = (
        f"IEMOCAP, {classes} classes ({', '.join(dict.fromkeys(PROTOCOLS[classes].values()))}), other labels left out; "
        f"test = session 5; valid = {valid} of {valid + training} dialogues of sessions 1 to 4, drawn with seed {seed}"
    )
    for split, dialogue, utterance in _walk(source.splits):
        session = folder / f"Session{dialogue[4]}"
        wav = session / "sentences" / "wav" / dialogue / f"{utterance.id}.wav"
        avi = session / "dialog" / "avi" / "DivX" / f"{dialogue}.avi"
        for path in (wav, avi):
            if not path.is_file():
                place = f"{split} {utterance.id}"
                source.problems.append(Problem("missing_file", place, f"expected {path.relative_to(folder)}"))
        assert utterance.start is not None
        marked = utterance.speaker[-1] == dialogue[5]
        clip = Clip(
            utterance.id,
            Span(wav) if wav.is_file() else None,
            Span(avi, utterance.start, utterance.end) if avi.is_file() else None,
            None if whole_frame else "left" if marked else "right",
            _seconds(utterance),
        )
        source.clips.setdefault(split, []).append(clip)
    return source


def folder_source(
    folder: Path,
    valid_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    recognize: Callable[[Path, ProblemHandler], list[Line]] | None = None,
) -> Source:
    """A plain folder of recordings with transcripts, see `read_folder`.

    Args:
        folder, valid_fraction, test_fraction, seed: As for `read_folder`.
        recognize: Makes the utterances of a recording without a transcript, and reports that it did.

    Raises:
        FileNotFoundError, ValueError: See `read_folder`.
    """
    source = Source(folder, {}, {}, "")
    report = source.problems.append
    try:
        source.splits, media = read_folder(
            folder,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            seed=seed,
            report=report,
            recognize=None if recognize is None else lambda media: recognize(media, report),
        )
    except FileNotFoundError as error:
        found = f"\n{problem_table(source.problems)}" if source.problems else ""
        raise FileNotFoundError(f"{error}{found}") from None
    counts = ", ".join(f"{len(part)} {split}" for split, part in source.splits.items())
    how = "as given by its folders" if split_folders(folder) else f"drawn with seed {seed}"
    source.protocol = f"recordings of a folder, one dialogue each; splits {how}: {counts}"
    for split, dialogue, utterance in _walk(source.splits):
        source.clips.setdefault(split, []).append(recording_clip(media[split][dialogue], utterance))
    return source


def hub_source(
    name: str,
    media: Path | None,
    subset: str | None = None,
    valid_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
) -> Source:
    """A data set of the Hugging Face hub or in its layout, see `read_hub_dataset` for the arguments.

    Raises:
        FileNotFoundError, ImportError, ValueError: See `read_hub_dataset`.
    """
    source = Source(dataset_folder(name), {}, {}, "")
    found = read_hub_dataset(
        name,
        media=media,
        subset=subset,
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
        seed=seed,
        report=source.problems.append,
    )
    source.splits = found.splits
    counts = ", ".join(f"{len(part)} {split}" for split, part in source.splits.items())
    drawn = f", {' and '.join(found.drawn)} drawn from train with seed {seed}" if found.drawn else ""
    source.protocol = f"{name}, splits as given{drawn}; conversations: {counts}"
    for split, _, utterance in _walk(source.splits):
        clip = found.clips[split][utterance.id]
        sound, picture = (
            None if path is None else Span(path, clip.begin, clip.end) for path in (clip.sound, clip.picture)
        )
        source.clips.setdefault(split, []).append(Clip(utterance.id, sound, picture, seconds=_seconds(utterance)))
    return source


def recording_clip(media: Path, utterance: Utterance) -> Clip:
    """The part of a recording between an utterance's times."""
    assert utterance.start is not None
    span = Span(media, utterance.start, utterance.end)
    return Clip(utterance.id, span, None if media.suffix.lower() in AUDIO else span)


def _walk(splits: dict[str, Conversations]) -> Iterator[tuple[str, str, Utterance]]:
    for split, conversations in splits.items():
        for dialogue in conversations.dialogues:
            for utterance in dialogue.utterances:
                yield split, dialogue.id, utterance


def _locate(folder: Path, name: str) -> Path:
    for path in (folder / name, *sorted(folder.glob(f"*/{name}"))):
        if path.exists():
            return path
    raise FileNotFoundError(f"{folder}: expected {name} in it or one folder below, as MELD is published")


def _seconds(utterance: Utterance) -> float | None:
    if utterance.start is None or utterance.end is None or utterance.end <= utterance.start:
        return None
    return utterance.end - utterance.start
