"""Every format of transcripts by every quirk of its kind: in each cell the right speakers, words, labels and times."""

import html
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise, product

import pytest

from amuse.data.transcript import READERS, read_transcript
from tests.test_transcripts import Problems


@dataclass(frozen=True)
class Turn:
    """An utterance as it was meant."""

    speaker: str
    words: str
    label: str
    start: float
    end: float


ANN = Turn("Ann", "Well, where were you?", "angry", 0.0, 2.4)
BOB = Turn("Bob", "At work.", "calm", 2.4, 3.9)


def clock(seconds: float, mark: str = ",", digits: int = 3) -> str:
    units = round(seconds * 10**digits)
    whole, fraction = divmod(units, 10**digits)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{mark}{fraction:0{digits}d}"


def named(turn: Turn) -> str:
    """`Ann (angry): words`, as subtitles have them."""
    label = f" ({turn.label})" if turn.label else ""
    return f"{turn.speaker}{label}: {turn.words}" if turn.speaker else turn.words


def table(turns: list[Turn], mark: str) -> str:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if any(c in cell for c in f'{mark}"\n') else cell

    rows = [[f"{t.start}", f"{t.end}", t.speaker, t.words, t.label] for t in turns]
    lines = [mark.join(map(quoted, row)) for row in (["start", "end", "speaker", "text", "label"], *rows)]
    return "\n".join(lines) + "\n"


def subrip(turns: list[Turn]) -> str:
    return "\n".join(
        f"{n}\n{clock(t.start)} --> {clock(t.end)}\n{html.escape(named(t), quote=False)}\n"
        for n, t in enumerate(turns, 1)
    )


def webvtt(turns: list[Turn]) -> str:
    return "WEBVTT\n\n" + "\n".join(
        f"cue {n}\n{clock(t.start, '.')} --> {clock(t.end, '.')}\n{html.escape(named(t), quote=False)}\n"
        for n, t in enumerate(turns, 1)
    )


def ass(turns: list[Turn]) -> str:
    events = ""
    for t in turns:
        start, end = (clock(s, ".", 2).removeprefix("0") for s in (t.start, t.end))
        words = named(t).replace("\n", "\\N")
        events += f"Dialogue: 0,{start},{end},Default,,0,0,0,,{words}\n"
    fields = "Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text"
    return f"[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: {fields}\n{events}"


def ssa(turns: list[Turn]) -> str:
    return (
        ass(turns)
        .replace("v4.00+", "v4.00")
        .replace("Layer,", "Marked,")
        .replace("Dialogue: 0,", "Dialogue: Marked=0,")
    )


def ttml(turns: list[Turn]) -> str:
    lines = ""
    for t in turns:
        words = html.escape(named(t)).replace("\n", "<br/>")
        lines += f'<p begin="{clock(t.start, ".")}" end="{clock(t.end, ".")}">{words}</p>\n'
    return f'<tt xmlns="http://www.w3.org/ns/ttml"><body><div>\n{lines}</div></body></tt>\n'


def segments(turns: list[Turn]) -> list[dict[str, object]]:
    found = []
    for t in turns:
        given = {"start": t.start, "end": t.end, "text": t.words, "speaker": t.speaker, "label": t.label}
        found.append({key: value for key, value in given.items() if value != ""})
    return found


def eaf(turns: list[Turn]) -> str:
    slots, tiers, number = [], [], 0
    for speaker in dict.fromkeys(t.speaker for t in turns):
        own, labels = [], []
        for t in (t for t in turns if t.speaker == speaker):
            number += 1
            slots += [(f"a{number}", t.start), (f"b{number}", t.end)]
            value = f"<ANNOTATION_VALUE>{html.escape(t.words)}</ANNOTATION_VALUE>"
            times = f'TIME_SLOT_REF1="a{number}" TIME_SLOT_REF2="b{number}"'
            own.append(
                f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="u{number}" {times}>{value}</ALIGNABLE_ANNOTATION>'
                "</ANNOTATION>"
            )
            if t.label:
                value = f"<ANNOTATION_VALUE>{html.escape(t.label)}</ANNOTATION_VALUE>"
                labels.append(
                    f'<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="l{number}" ANNOTATION_REF="u{number}">{value}'
                    "</REF_ANNOTATION></ANNOTATION>"
                )
        name = f"tier{len(tiers)}" if speaker else ""
        who = f'PARTICIPANT="{html.escape(speaker)}"' if speaker else ""
        tiers.append(f'<TIER TIER_ID="{name}" {who}>{"".join(own)}</TIER>')
        if labels:
            tiers.append(f'<TIER TIER_ID="{name}_label" {who} PARENT_REF="{name}">{"".join(labels)}</TIER>')
    order = "".join(f'<TIME_SLOT TIME_SLOT_ID="{name}" TIME_VALUE="{round(1000 * s)}"/>\n' for name, s in slots)
    return f"<ANNOTATION_DOCUMENT><TIME_ORDER>\n{order}</TIME_ORDER>{''.join(tiers)}</ANNOTATION_DOCUMENT>\n"


def textgrid(turns: list[Turn]) -> str:
    def tier(name: str, marks: list[tuple[float, float, str]]) -> str:
        rows = "".join('{} {} "{}"\n'.format(a, b, text.replace('"', '""')) for a, b, text in marks)
        return '"IntervalTier" "{}" 0 9999 {}\n{}'.format(name.replace('"', '""'), len(marks), rows)

    tiers = []
    for speaker in dict.fromkeys(t.speaker for t in turns):
        own = [t for t in turns if t.speaker == speaker]
        tiers.append(tier(speaker, [(t.start, t.end, t.words) for t in own]))
        tiers.append(tier(f"{speaker} label", [(t.start, t.end, t.label) for t in own]))
    head = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0 9999 <exists>'
    return f"{head} {len(tiers)}\n{''.join(tiers)}"


def rttm(turns: list[Turn]) -> str:
    return "".join(
        f"SPEAKER talk 1 {t.start} {round(t.end - t.start, 6)} <NA> <NA> {t.speaker or '<NA>'} <NA> <NA>\n"
        for t in turns
    )


@dataclass(frozen=True)
class Format:
    """A way to write a conversation down.

    Attributes:
        write: Turns -> text.
        words, labels: Whether it has them.
    """

    write: Callable[[list[Turn]], str]
    words: bool = True
    labels: bool = True


FORMATS = {
    "csv": Format(lambda turns: table(turns, ",")),
    "tsv": Format(lambda turns: table(turns, "\t")),
    "semicolon.csv": Format(lambda turns: table(turns, ";")),
    "srt": Format(subrip),
    "vtt": Format(webvtt),
    "ass": Format(ass),
    "ssa": Format(ssa),
    "ttml": Format(ttml),
    "json": Format(lambda turns: json.dumps({"segments": segments(turns)}, ensure_ascii=False, indent=1)),
    "jsonl": Format(lambda turns: "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in segments(turns))),
    "eaf": Format(eaf),
    "TextGrid": Format(textgrid),
    "rttm": Format(rttm, words=False, labels=False),
}


def turned(**changes: object) -> list[Turn]:
    return [replace(ANN, **changes), BOB]


TURNS = {
    "plain": [ANN, BOB],
    "Latin with accents": turned(speaker="Zoë-José", words="Où étais-tu ? Über «dort»…"),
    "typographic apostrophe": turned(speaker="O\u2019Brien", words="It\u2019s late"),
    "decomposed characters": turned(speaker=unicodedata.normalize("NFD", "Élodie"), words="ici"),
    "Devanagari": turned(speaker="सीता", words="नमस्ते"),
    "Tamil": turned(speaker="ராமு", words="வணக்கம்"),
    "Bengali": turned(speaker="বাবা", words="কেমন"),
    "Thai": turned(speaker="สมชาย", words="สวัสดี"),
    "Chinese": turned(speaker="张三", words="你好，在吗"),
    "Arabic": turned(speaker="مریم", words="سلام"),
    "a name of two words": turned(speaker="Speaker 1"),
    "a title": turned(speaker="Dr. Smith"),
    "marks of markup": turned(words="a & b, 1 < 2 > 0"),
    "marks of tables": turned(words='She said "no; never", and | left'),
    "a colon in the words": turned(words="listen: go at 10:30"),
    "digits alone": turned(words="1987"),
    "an arrow in the words": turned(words="from A -> B"),
    "two lines": turned(words="Well, where\nwere you?"),
    "no label": turned(label=""),
    "a label of two words": turned(label="very sad"),
    "nobody named": turned(speaker="", label=""),
    "an hour and more": [replace(ANN, start=3723.45, end=3725.0), replace(BOB, start=36000.0, end=36001.5)],
    "out of order": [BOB, ANN],
    "at once": [ANN, replace(BOB, start=1.0)],
    "the same speaker again": [ANN, BOB, replace(ANN, words="Fine.", start=4.0, end=5.0)],
    "the end before the start": [ANN, replace(BOB, start=3.0, end=2.5)],
    "no time at all": [ANN, replace(BOB, start=3.0, end=3.0)],
}
"""Quirk of the conversation -> its turns."""
BYTES = {
    "UTF-8": lambda text: text.encode(),
    "UTF-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "big-endian UTF-16": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "Windows line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "no line end": lambda text: text.rstrip("\n").encode(),
    "empty lines at the end": lambda text: (text + "\n\n\n").encode(),
}
"""Quirk of the file -> its bytes."""
INEXPRESSIBLE = {("rttm", "a name of two words"), ("rttm", "a title")}
"""Cells that a format cannot hold: those of RTTM end at spaces."""


def expected(turns: list[Turn], form: Format) -> list[tuple[str, str | None, str | None, float, float]]:
    def name(speaker: str) -> str:
        return unicodedata.normalize("NFC", speaker).replace("\u2019", "'") or "unknown"

    return [
        (
            name(t.speaker),
            " ".join(t.words.split()) if form.words else None,
            (t.label or None) if form.labels else None,
            t.start,
            t.end,
        )
        for t in sorted(turns, key=lambda t: t.start)
        if t.end > t.start
    ]


def kinds(turns: list[Turn]) -> set[str]:
    kept = sorted((t for t in turns if t.end > t.start), key=lambda t: t.start)
    found = {"bad_row"} if len(kept) < len(turns) else set()
    found |= {"missing_speaker"} if any(not t.speaker for t in kept) else set()
    return found | ({"overlap"} if any(b.start < a.end for a, b in pairwise(kept)) else set())


def check(tmp_path, name: str, turns: list[Turn], content: bytes) -> None:
    if name in ("ass", "ssa", "ttml"):
        pytest.importorskip("pysubs2", reason="needs the extra: pip install amuse-kernels[media]")
    path = tmp_path / f"talk.{name}"
    path.write_bytes(content)
    problems = Problems()
    lines = read_transcript(path, problems)
    read = [
        (line.speaker, None if line.text is None else " ".join(line.text.split()), line.label, line.start, line.end)
        for line in lines
    ]
    assert read == [
        (*rest, pytest.approx(start, abs=1e-6), pytest.approx(end, abs=1e-6))
        for *rest, start, end in expected(turns, FORMATS[name])
    ]
    told = set(problems.kinds) - {"missing_text"}
    if name in ("eaf", "TextGrid") and "bad_row" in told:
        told.discard("unused")  # the label of the turn that is left out
    assert told == kinds(turns)


def test_every_format_is_in_the_matrix():
    assert {f".{name.rpartition('.')[2].lower()}" for name in FORMATS} == set(READERS)


@pytest.mark.parametrize(("name", "quirk"), [cell for cell in product(FORMATS, TURNS) if cell not in INEXPRESSIBLE])
def test_conversation_is_read_as_it_was_meant(tmp_path, name, quirk):
    check(tmp_path, name, TURNS[quirk], FORMATS[name].write(TURNS[quirk]).encode())


@pytest.mark.parametrize("quirk", BYTES)
@pytest.mark.parametrize("name", FORMATS)
def test_file_is_read_however_it_was_saved(tmp_path, name, quirk):
    turns = TURNS["Latin with accents"]
    check(tmp_path, name, turns, BYTES[quirk](FORMATS[name].write(turns)))


@pytest.mark.parametrize("name", FORMATS)
def test_other_encodings_are_refused_with_the_file(tmp_path, name):
    path = tmp_path / f"talk.{name}"
    path.write_bytes(FORMATS[name].write(turned(speaker="José")).encode("latin-1"))
    with pytest.raises(ValueError, match=r"talk\.\w+"):
        read_transcript(path, Problems())


@pytest.mark.parametrize("name", FORMATS)
def test_empty_files_are_refused_or_hold_nothing(tmp_path, name):
    path = tmp_path / f"talk.{name}"
    for content in (b"", b"\n\n", b"\xff\xfe", FORMATS[name].write([]).encode()):
        path.write_bytes(content)
        try:
            assert read_transcript(path, Problems()) == []
        except ValueError as error:
            assert f"talk.{name}" in str(error)  # noqa: PT017  (only some are refused)
