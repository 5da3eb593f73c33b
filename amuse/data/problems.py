"""Problems in raw data: collected along the way, never fatal for the rest, shown and written at the end."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NOTES = {
    "cancelled": "the two channels of the sound cancel each other out; the louder one was used instead of their mean",
    "long_clip": "the clip is much longer than its utterance; its beginning was used",
    "long_utterance": "longer than --max-seconds; its beginning was used",
    "milliseconds": "times without a unit that would be hours in seconds; they were taken for milliseconds",
    "missing_speaker": "no speaker is named; counted as the speaker 'unknown'",
    "missing_text": "an utterance without words in the transcript; it lacks text",
    "no_conversations": "no column groups the utterances; each is a conversation of its own",
    "no_transcript": "a recording without a transcript; cut at pauses, no words, one speaker",
    "no_face": "no face in any key frame; the utterance lacks the modality face",
    "overlap": "utterances overlap in time; each was cut as its transcript says",
    "repeated": "captions that show the line before again, as live ones do; each line was used once",
    "same_class": "labels that differ in case only; they were taken for one class",
    "several_tracks": "more than one track of sound or picture; the default one was used, commentaries last",
    "silent": "the sound is digital silence; it was encoded as such",
    "sound_gap": "the sound begins late or is interrupted; there it was taken for silent",
    "stray_file": "a file that belongs to no utterance; not used",
    "transcribed": "a recording without a transcript; words and speakers were recognised by machine",
    "undecided_face": "several faces, of which no mouth clearly moves with the sound; the largest was used",
    "unused": "columns, tiers or lines of a transcript without a meaning here; not used",
    "variable_frame_rate": "frames at uneven times; key frames were chosen by time, which is right for these too",
}
"""Kinds of problems that lose no data."""

LOSSES = {
    "bad_row": "a line of a transcript or table that cannot be used; the utterance was left out",
    "bad_transcript": "a transcript that cannot be read; the conversation was left out",
    "codec": "a codec that this FFmpeg cannot decode; the stream was skipped",
    "damaged": "some packets could not be decoded; the rest was used",
    "duplicate_id": "an utterance id occurs twice; the second one was left out",
    "empty_audio": "an audio track without a sample; the utterance lacks audio",
    "misplaced": "recordings outside of the folders that are read; they were left out",
    "missing_file": "no such file; the utterance lacks what it holds",
    "missing_transcript": "a recording without a transcript next to it; the conversation was left out",
    "no_audio": "no audio track; the utterance lacks audio",
    "no_video": "no picture; the utterance lacks the visual modalities",
    "not_finite": "NaN or infinity in the features, from invalid samples; the modality was left out",
    "out_of_range": "the utterance's times are outside the file; the stream was skipped",
    "resolution": "frames too large to decode safely; the picture was skipped",
    "truncated": "the file ends early; the rest of it was used",
    "unreadable": "not a media file, or broken at its beginning; skipped",
}
"""Kinds of problems that lose data."""


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        kind: One of `NOTES` and `LOSSES`.
        place: Split and utterance, or a file.
        message: What was found, for a human.
    """

    kind: str
    place: str
    message: str

    @property
    def lost(self) -> bool:
        """Whether it loses data."""
        return self.kind not in NOTES


ProblemHandler = Callable[[Problem], None]
"""Takes problems as they are found, such as `list.append`."""


def problem_table(problems: Sequence[Problem]) -> str:
    """One entry per kind: how often, what was done, and the first place."""
    if not problems:
        return "no problems found"
    first = {problem.kind: problem for problem in reversed(problems)}
    counts = Counter(problem.kind for problem in problems)
    lines = []
    for kind, count in sorted(counts.items(), key=lambda entry: (not first[entry[0]].lost, -entry[1], entry[0])):
        lines.append(f"{count:>7}  {kind:<20} {({**NOTES, **LOSSES})[kind]}")
        lines.append(f"{'':7}  {'':20} e.g. {first[kind].place}: {first[kind].message}")
    return "\n".join(lines)
