"""Formats of transcripts by their quirks: the right speaker, words, label and times in every cell, or a report."""

import random
import re
import unicodedata
from pathlib import Path

import pytest

from amuse.data.folder import read_folder
from amuse.data.problems import LOSSES, NOTES
from amuse.data.speakers import speaker_lines
from amuse.data.transcript import READERS, read_transcript

DOCS = Path(__file__).parents[1] / "docs" / "data.md"


class Problems(list):
    def __call__(self, problem):
        assert problem.kind in {**NOTES, **LOSSES}
        self.append(problem)

    @property
    def kinds(self):
        return [problem.kind for problem in self]


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    problems = Problems()
    return read_transcript(path, problems), problems


def spoken(lines):
    return [(line.speaker, line.text) for line in lines]


EXAMPLES = dict(
    re.findall(r"^`(talk\.\w+)`.*?\n```text\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
)


def test_documentation_has_an_example_of_every_kind_of_transcript():
    shown = {Path(name).suffix.lower() for name in EXAMPLES}
    assert shown | {".ssa", ".ttml"} == set(READERS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_in_the_documentation_is_read(tmp_path, name):
    if name.endswith(".ass"):
        pytest.importorskip("pysubs2", reason="needs the extra: pip install amuse-kernels[media]")
    lines, problems = read(tmp_path, name, EXAMPLES[name])
    assert [(line.start, line.end) for line in lines] == [(0.0, 2.4), (2.4, 3.9)]
    expected = ["Ann", "Bob"] if not name.endswith(".tsv") else ["unknown"] * 2
    assert [line.speaker for line in lines] == expected
    words = ["Well, where were you?", "At work."] if not name.endswith(".rttm") else [None] * 2
    assert [line.text for line in lines] == words
    assert lines[0].label == (None if Path(name).suffix in (".tsv", ".vtt", ".ass", ".rttm") else "angry")
    assert lines[1].label is None
    told = {"talk.tsv": {"milliseconds", "missing_speaker"}, "talk.vtt": {"unused"}}  # its note
    assert set(problems.kinds) == told.get(name, set())


HEADER = "start,end,speaker,text,label\n"


@pytest.mark.parametrize(
    ("content", "words", "kinds"),
    [
        (HEADER + "0.0,2.4,Ann,Well, where were you?,angry\n2.4,3,Bob,Hm,calm\n", ["Hm"], ["bad_row"]),
        (HEADER + '0,1,Ann,"Well,angry\n1,2,Bob,Hm,calm\n2,3,Ann,Oh,calm\n', ["Hm", "Oh"], ["bad_row"]),
        (HEADER + '0,1,Ann,"Well,angry\n1,2,Bob,"Hm",calm\n2,3,Ann,Oh,calm\n', ["Hm", "Oh"], ["bad_row"]),
        (HEADER + '0,1,Ann,Hm,calm\n1,2,Bob,"Well,angry\n', ["Hm"], ["bad_row"]),
        (HEADER + '0,1,Ann,"Say "hi" to her",calm\n1,2,Bob,Oh,calm\n', ["Oh"], ["bad_row"]),
        (
            HEADER + '0,1,Ann,"two\nlines",calm\n1,2,Bob,"a ""quoted"" word",calm\n',
            ["two\nlines", 'a "quoted" word'],
            [],
        ),
        (HEADER + "0,1,Ann,Hm,calm,,,\n\n1,2,Bob,Oh\n", ["Hm", "Oh"], []),
        (HEADER.replace(",", ";") + "0,5;1,5;Ann;Well, yes;calm\n", ["Well, yes"], []),
        (HEADER.replace(",", "\t") + "0\t1\tAnn\tWell, yes\tcalm\n", ["Well, yes"], []),
        ("sep=|\n" + HEADER.replace(",", "|") + "0|1|Ann|a, b|calm\n", ["a, b"], []),
        ((HEADER + "0,1,Ann,Schön,calm\n").encode("utf-16"), ["Schön"], []),
        ((HEADER + "0,1,Ann,Schön,calm\n").encode("utf-8-sig"), ["Schön"], []),
        ("StartTime,EndTime,Speaker,Utterance,Emotion\n0,1,Ann,Hm,calm\n", ["Hm"], []),
        ("start_ms,duration (ms),speaker,text,label\n0,1500,Ann,Hm,calm\n", ["Hm"], []),
        ("Season,start,end,speaker,text,label,\n3,0,1,Ann,Hm,calm,\n", ["Hm"], ["unused"]),
        ("start,end,speaker,text,label,emotion,label\n0,1,Ann,Hm,calm,x,y\n", ["Hm"], ["unused"]),
        (HEADER.replace("\n", "\r\n") + "0,1,Ann,Hm,calm\r\n", ["Hm"], []),
    ],
)
def test_table_is_read_right_or_its_rows_are_reported(tmp_path, content, words, kinds):
    lines, problems = read(tmp_path, "talk.csv", content)
    assert [line.text for line in lines] == words
    assert {line.label for line in lines} <= {"calm", None}
    assert problems.kinds == kinds
    if kinds == ["bad_row"]:
        assert re.search(r"line [23]$", problems[0].place)
    if kinds == ["unused"]:
        assert "Season" in problems[0].message or "emotion" in problems[0].message


def test_times_of_a_table_have_the_unit_that_its_column_says(tmp_path):
    lines, _ = read(tmp_path, "talk.csv", "start_ms,duration (ms),text\n500,1500,Hm\n")
    assert (lines[0].start, lines[0].end) == (0.5, 2.0)
    lines, problems = read(tmp_path, "talk.csv", "start,end,text\n0,90,a long one\n90,300,another\n300,310,short\n")
    assert [line.end for line in lines] == [90, 300, 310]  # seconds: most of them are no hours
    assert "milliseconds" not in problems.kinds


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1\n00:00:00,000-->00:00:02,000\nAnn: a\n\n2\n00:00:02,079 -->00:00:03\nBob: b\n",
         [("Ann", "a"), ("Bob", "b")]),
        ("00:00:00,000 --> 00:00:02,000\nAnn: a\n00:00:02,000 --> 00:00:03,000\nBob: 7\n8\n",
         [("Ann", "a"), ("Bob", "7 8")]),
        ("1\n00:00:00,000 --> 00:00:02,000\nAnn: one\n\nmore\n\n2\n\n00:00:02,000 --> 00:00:03,000\nBob: two\n\n\n3\n"
         "00:00:03,000 --> 00:00:04,000\nAnn: \n7\n", [("Ann", "one more"), ("Bob", "two"), ("Ann", "7")]),
        ("1\n00:00:00,000 --> 00:00:01,000\nAnn: in\n12\n2\n00:00:01,000 --> 00:00:02,000\nBob: b\n",
         [("Ann", "in 12"), ("Bob", "b")]),
        ("1\n0:0:0,0 --> 0:0:1.5 X1:1 Y1:2\n{\\an8}<font color='#fff'>Ann: a &amp; b &lt;3</font>\n",
         [("Ann", "a & b <3")]),
        ("1\n00:00:00,000 --> 00:00:01,000\n- Ann: a\nand more\n- Bob: b\n", [("Ann", "a and more"), ("Bob", "b")]),
        ("1\n00:00:00,000 --> 00:00:01,000\n- well\n- no\n", [("unknown", "- well - no")]),
        ("1\n00:00:00,000 --> 00:00:01,000\n- Ann: a\n- no\n", [("Ann", "a"), ("unknown", "no")]),
        ("1\n00:00:00,000 --> 00:00:01,000\nAnn: a\nand more\nMISS LEE: b\n",
         [("Ann", "a and more"), ("MISS LEE", "b")]),
        ("1\n00:00:00,000 --> 00:00:01,000\nसीता: अ\n张三：你好\n", [("सीता", "अ"), ("张三", "你好")]),
        ("1\n00:00:00,000 --> 00:00:01,000\nAnn: a\nOne thing: b\n", [("Ann", "a One thing: b")]),
        ("1\n00:00:00,000 --> 00:00:01,000\n>> ANN: a\n>> BOB: b\n", [("ANN", "a"), ("BOB", "b")]),
    ],
)  # fmt: skip
def test_subrip_is_read_as_people_write_it(tmp_path, content, expected):
    for changed in (content.encode(), content.replace("\n", "\r\n").encode(), content.encode("utf-16")):
        lines, problems = read(tmp_path, "talk.srt", changed)
        assert spoken(lines) == expected
        assert set(problems.kinds) <= {"missing_speaker", "overlap"}


def test_broken_times_take_no_words_of_others(tmp_path):
    content = (
        "1\n00:00:00,000 --> 00:00:01,000\nAnn: a\n\n2\n00:00:01,000 --> soon\nBob: b\n\n"
        "3\n00:00:02,000 --> 00:00:03,000\nAnn: c\n"
    )
    lines, problems = read(tmp_path, "talk.srt", content)
    assert spoken(lines) == [("Ann", "a"), ("Ann", "c")]
    assert problems.kinds == ["bad_row"]
    assert "'b'" in problems[0].message
    assert problems[0].place == "talk.srt, line 6"


@pytest.mark.parametrize(
    ("line", "speaker", "label", "words"),
    [
        ("सीता: नमस्ते", "सीता", "", "नमस्ते"),
        ("ராமு: வணக்கம்", "ராமு", "", "வணக்கம்"),
        ("বাবা: কেমন", "বাবা", "", "কেমন"),
        ("สมชาย: สวัสดี", "สมชาย", "", "สวัสดี"),
        ("张三：你好", "张三", "", "你好"),
        ("Marie\u00a0: Bonjour", "Marie", "", "Bonjour"),
        ("O\u2019Brien: Hello", "O\u2019Brien", "", "Hello"),
        ("[SPEAKER_00]: hi", "SPEAKER_00", "", "hi"),
        ("[SPEAKER_01] hi there", "SPEAKER_01", "", "hi there"),
        ("مریم: سلام", "مریم", "", "سلام"),
        ("JOHN (V.O.): I was", "JOHN", "", "I was"),
        ("JOHN (CONT\u2019D): I was", "JOHN", "", "I was"),
        ("Ann (angry): No", "Ann", "angry", "No"),
        ("Ann [angry]: No", "Ann", "angry", "No"),
        ("&gt;&gt; Ann: No", "", "", "&gt;&gt; Ann: No"),
        (">> No", "", "", "No"),
        ("Ann (V.O.) (very sad): No", "Ann", "very sad", "No"),
        ("- Ann: hi", "Ann", "", "hi"),
        ("Dr. Müller-Lüdenscheidt: ja", "Dr. Müller-Lüdenscheidt", "", "ja"),
        ("It is 10:30 now", "", "", "It is 10:30 now"),
        ("I have one thing to say: no", "", "", "I have one thing to say: no"),
        ("Stop! he said: no", "", "", "Stop! he said: no"),
        ("http://example.org", "", "", "http://example.org"),
        ("[laughs] yes", "", "", "[laughs] yes"),
        ("- 5 degrees", "", "", "5 degrees"),
    ],
)
def test_speaker_of_a_line_is_separated_from_its_words(line, speaker, label, words):
    assert speaker_lines([line]) == [(speaker, label, words)]


def test_one_speaker_has_one_name_however_it_is_written(tmp_path):
    rows = [unicodedata.normalize(form, "Élodie") for form in ("NFC", "NFD")] + ["O\u2019Brien", "O'Brien"]
    content = "".join(f"00:00:0{i},000 --> 00:00:0{i + 1},000\n{name}: a\n\n" for i, name in enumerate(rows))
    lines, _ = read(tmp_path, "talk.srt", content)
    assert [line.speaker for line in lines] == ["Élodie", "Élodie", "O'Brien", "O'Brien"]
    lines, _ = read(
        tmp_path, "talk.csv", "start,end,speaker\n" + "".join(f"{i},{i + 1},{n}\n" for i, n in enumerate(rows))
    )
    assert [line.speaker for line in lines] == ["Élodie", "Élodie", "O'Brien", "O'Brien"]


def test_webvtt_is_cut_at_empty_lines_and_the_rest_is_reported(tmp_path):
    content = (
        "WEBVTT - talk\nKind: captions\n\nSTYLE\n::cue { color: red }\n\nintro\n00:00.000 --> 00:01.000\n"
        "<v Ann>a <c.x>b</c></v>\n<v Bob>c</v>\n\nNOTE\nnot said\n\n"
        "01:00:01.500 --> 01:00:02.000\nplain <00:19.000>words\n\nlost words\n"
    )
    lines, problems = read(tmp_path, "talk.vtt", content)
    assert spoken(lines) == [("Ann", "a b"), ("Bob", "c"), ("unknown", "plain words")]
    assert lines[2].start == 3601.5
    assert [p.kind for p in problems if p.kind != "missing_speaker"] == [*["unused"] * 2, "bad_row", "overlap"]
    assert "lost words" in next(p.message for p in problems if p.kind == "bad_row")


ROLLING = [
    (0.1, 2.3, " \nhello<00:00:00.480><c> there</c>"),
    (2.3, 2.31, "hello there\n "),
    (2.31, 4.0, "hello there\nmy<00:00:02.500><c> friend</c>"),
    (4.0, 4.01, "my friend\n "),
    (4.01, 6.0, "my friend\ncome<c> in</c>"),
    (9.0, 9.5, "so"),
    (9.5, 9.6, "so\n "),
]


@pytest.mark.parametrize("suffix", ["vtt", "srt"])
def test_words_of_captions_that_roll_are_read_once(tmp_path, suffix):
    """As YouTube and live captions write them, with lines of a space inside of a cue."""
    content = "WEBVTT\nKind: captions\nLanguage: en\n\n" if suffix == "vtt" else ""
    for begin, end, words in ROLLING:
        content += f"00:00:{begin:06.3f} --> 00:00:{end:06.3f} align:start\n{words}\n\n"
    lines, problems = read(tmp_path, f"talk.{suffix}", content)
    assert [line.text for line in lines] == ["hello there", "my friend", "come in", "so"]
    assert [line.start for line in lines] == [0.1, 2.31, 4.01, 9.0]
    assert "repeated" in problems.kinds
    answers = [("Ann", "No."), ("Bob", "No."), ("Ann", "No."), ("Bob", "Yes."), ("Ann", "Yes."), ("Bob", "Well.")]
    content = "".join(f"00:00:0{i},000 --> 00:00:0{i + 1},000\n{who}: {w}\n\n" for i, (who, w) in enumerate(answers))
    assert spoken(read(tmp_path, "talk.srt", content)[0]) == answers


def test_a_speaker_who_is_named_apart_keeps_all_words(tmp_path):
    """In WebVTT's voices and the field Name of ASS."""
    content = "WEBVTT\n\n00:00.000 --> 00:01.000\n<v Ann (angry)>Note: never</v>\n"
    lines, _ = read(tmp_path, "talk.vtt", content)
    assert [(line.speaker, line.label, line.text) for line in lines] == [("Ann", "angry", "Note: never")]
    pytest.importorskip("pysubs2", reason="needs the extra: pip install amuse-kernels[media]")
    content = EXAMPLES["talk.ass"].replace("{\\i1}Well{\\i0}, where", "Ann (angry): {\\i1}Well{\\i0}, where")
    content = content.replace("Default,,0", "Default,Cid (calm),0")
    lines, _ = read(tmp_path, "talk.ass", content)
    assert [(line.speaker, line.label, line.text) for line in lines] == [
        ("Ann", "angry", "Well, where were you?"),
        ("Cid", "calm", "Bob: At work."),
    ]


def test_offset_of_a_streams_segment_is_reported(tmp_path):
    content = "WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:900000,LOCAL:00:00:00.000\n\n00:00.000 --> 00:01.000\nAnn: a\n"
    lines, problems = read(tmp_path, "talk.vtt", content)
    assert spoken(lines) == [("Ann", "a")]
    assert problems.kinds == ["unused"]


def test_quotation_marks_in_whispers_tables_are_words(tmp_path):
    content = 'start\tend\ttext\n0\t2400\t"Hello," she said.\n2400\t3900\tand "left\n3900\t5000\t"so\n'
    lines, problems = read(tmp_path, "talk.tsv", content)
    assert [line.text for line in lines] == ['"Hello," she said.', 'and "left', '"so']
    assert set(problems.kinds) == {"milliseconds", "missing_speaker"}


def test_times_in_milliseconds_are_reported_in_json_too(tmp_path):
    content = '{"utterances": [{"start": 250, "end": 2650, "speaker": "A", "text": "a"}]}'
    for name in ("talk.json", "talk.jsonl"):
        lines, problems = read(tmp_path, name, content if name.endswith(".json") else content[16:-2])
        assert [(line.start, line.end) for line in lines] == [(0.25, 2.65)]
        assert problems.kinds == ["milliseconds"]


def test_cells_without_a_number_are_empty(tmp_path):
    lines, _ = read(tmp_path, "talk.json", '[{"start": 0, "end": 1, "speaker": "A", "text": NaN, "label": NaN}]')
    assert (lines[0].text, lines[0].label) == (None, None)


@pytest.mark.parametrize(
    ("name", "content", "kind", "told"),
    [
        ("talk.csv", "start,end,speaker,,text\n0,1,Ann,Hello,there\n", "unused", "column 4, which has no name"),
        ("talk.srt", "1\n00:00:00,000 --> 00:00:01,000 Hello\nAnn: there\n", "unused", "'Hello'"),
        ("talk.vtt", "WEBVTT\nHello\n\n00:00.000 --> 00:01.000\nAnn: there\n", "bad_row", "'Hello'"),
        ("talk.vtt", "WEBVTT Hello\n\n00:00.000 --> 00:01.000\nAnn: there\n", "unused", "'Hello'"),
        ("talk.vtt", "WEBVTT\n\nNOTE Hello\n00:00.000 --> 00:01.000\nAnn: there\n", "unused", "'NOTE Hello'"),
        ("talk.ass", EXAMPLES["talk.ass"].replace("Well", "{Hello}"), "unused", "text in braces"),
        ("talk.ass", EXAMPLES["talk.ass"].replace("0,0,0,,{", "0,{").replace("Well", "Hello"), "bad_row", "Hello"),
        ("talk.jsonl", '{"start": 0, "end": 1, "text": "there", "": "Hello"}', "unused", "one without a name"),
    ],
)  # fmt: skip
def test_words_in_places_for_something_else_are_reported(tmp_path, name, content, kind, told):
    if name.endswith(".ass"):
        pytest.importorskip("pysubs2", reason="needs the extra: pip install amuse-kernels[media]")
    lines, problems = read(tmp_path, name, content)
    assert "Hello" not in str(lines)
    assert any(problem.kind == kind and told in problem.message for problem in problems)


def test_fields_of_ass_in_another_order_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"talk\.ass, line 5: expected Format: Layer, Start, End"):
        read(tmp_path, "talk.ass", EXAMPLES["talk.ass"].replace("Layer, Start", "Start, Layer"))


def test_labels_of_annotations_go_to_the_speaker_they_name(tmp_path):
    tier = '"IntervalTier" "{}" 0 4 2\n0 2 "{}"\n2 4 "{}"\n'
    grid = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0 4 <exists> {}\n{}'
    tiers = [("Ann", "a", ""), ("Bob", "", "b"), ("emotion", "calm", "glad")]
    lines, problems = read(tmp_path, "talk.TextGrid", grid.format(3, "".join(tier.format(*each) for each in tiers)))
    assert [(line.speaker, line.label) for line in lines] == [("Ann", "calm"), ("Bob", "glad")]
    tiers = [("Ann", "a", "a2"), ("Bob", "b", ""), ("Bob_emotion", "calm", "glad")]
    lines, problems = read(tmp_path, "talk.TextGrid", grid.format(3, "".join(tier.format(*each) for each in tiers)))
    assert sorted((line.speaker, line.label or "") for line in lines) == [("Ann", ""), ("Ann", ""), ("Bob", "calm")]
    assert "unused" in problems.kinds  # "glad" lies on nothing
    long = (
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0 \nxmax = 2 \ntiers? <exists> \nsize = 2 \n'
        'item []: \n    item [1]:\n        class = "IntervalTier" \n        name = "Ann" \n'
        "        xmin = 0 \n        xmax = 2 \n"
        "        intervals: size = 1 \n        intervals [1]:\n            xmin = 0 \n            xmax = 2 \n"
        '            text = "say ""12"" now" \n    item [2]:\n        class = "TextTier" \n        name = "clicks" \n'
        "        xmin = 0 \n        xmax = 2 \n        points: size = 1 \n        points [1]:\n"
        "            number = 1 \n"
        '            mark = "x" \n'
    )
    lines, problems = read(tmp_path, "talk.TextGrid", long.encode("utf-16"))
    assert spoken(lines) == [("Ann", 'say "12" now')]
    assert problems.kinds == ["unused"]


def test_labels_of_elan_are_read_in_whichever_order_its_tiers_are(tmp_path):
    """Also where a label refers to a translation that refers to the utterance, or to itself."""
    content = EXAMPLES["talk.eaf"]
    begin, end = content.index('  <TIER TIER_ID="A_emotion"'), content.index("</ANNOTATION_DOCUMENT>")
    emotions, rest = content[begin:end], content[:begin] + content[end:]
    first = rest.index("  <TIER")
    lines, problems = read(tmp_path, "talk.eaf", rest[:first] + emotions + rest[first:])
    assert [(line.speaker, line.label) for line in lines] == [("Ann", "angry"), ("Bob", None)]
    assert problems.kinds == []
    translation = emotions.replace("a3", "a4").replace("A_emotion", "A_translation").replace("angry", "Na")
    chained = emotions.replace('ANNOTATION_REF="a1"', 'ANNOTATION_REF="a4"')
    lines, problems = read(tmp_path, "talk.eaf", rest[:first] + chained + translation + rest[first:])
    assert [(line.speaker, line.label) for line in lines] == [("Ann", "angry"), ("Bob", None)]
    assert problems.kinds == ["unused"]  # the translation
    nameless = rest.replace('ANNOTATION_ID="a2" ', "")
    lines, problems = read(tmp_path, "talk.eaf", nameless)
    assert [(line.speaker, line.start) for line in lines] == [("Ann", 0.0), ("Bob", 2.4)]
    circle = emotions.replace('ANNOTATION_REF="a1"', 'ANNOTATION_REF="a3"')
    lines, problems = read(tmp_path, "talk.eaf", rest[:first] + circle + rest[first:])
    assert (len(lines), problems.kinds) == (2, ["bad_row"])


def test_turns_of_other_recordings_are_reported(tmp_path):
    content = EXAMPLES["talk.rttm"] + EXAMPLES["talk.rttm"].replace(" talk ", " other ").replace("Ann", "Cid")
    lines, problems = read(tmp_path, "talk.rttm", content)
    assert [line.speaker for line in lines] == ["Ann", "Bob"]
    assert problems.kinds == ["unused"]
    assert "other" in problems[0].message
    lines, problems = read(tmp_path, "renamed.rttm", EXAMPLES["talk.rttm"])
    assert len(lines) == 2  # of one recording, whatever its name


def test_json_entries_without_times_are_reported(tmp_path):
    content = (
        '[{"start": 0, "end": 1, "text": "a", "mood": 3}, {"start": null, "end": 2, "text": "b"}, 7, {"text": "c"}]'
    )
    lines, problems = read(tmp_path, "talk.json", content)
    assert [line.text for line in lines] == ["a"]
    assert [kind for kind in problems.kinds if kind != "missing_speaker"] == ["unused", "bad_row", "bad_row", "bad_row"]
    first = '{"start": 0, "end": 1, "text": "a"}'
    lines, problems = read(tmp_path, "talk.jsonl", '{"start": 0, "end": 1, "text": "a", "text": "b"}\n' + first)
    assert [line.text for line in lines] == ["a"]
    assert "bad_row" in problems.kinds  # which of its two texts would be meant?
    for broken in ("{}", "[]x", '{"segments": 3}', '[{"text": "a"}]', "[" * 5000):
        with pytest.raises(ValueError, match=r"talk\.json: expected"):
            read(tmp_path, "talk.json", broken)


def talk(path, labels=("calm", "angry"), ids=("", "")):
    rows = "".join(
        f"{i},{i + 1},Ann,word {i},{label},{id}\n" for i, (label, id) in enumerate(zip(labels, ids, strict=True))
    )
    path.write_text("start,end,speaker,text,label,id\n" + rows, encoding="utf-8")
    return path


def test_recordings_find_their_transcripts_whatever_the_case_and_accents(tmp_path):
    srt = "00:00:00,000 --> 00:00:01,000\nAnn: a\n"
    pairs = [
        ("DJI_0001.MP4", "DJI_0001.SRT"),
        ("talk.mp4", "talk.en.srt"),
        ("other.mkv", "other.pt-BR.vtt"),
        (unicodedata.normalize("NFC", "Élodie.mp4"), unicodedata.normalize("NFD", "Élodie.srt")),
        ("field.amr", "field.srt"),
        ("odd.xyz", "odd.srt"),
    ]
    for media, transcript in pairs:
        (tmp_path / media).touch()
        (tmp_path / transcript).write_text(
            "WEBVTT\n\n" * transcript.endswith("vtt") + srt.replace(",", ".", 0), encoding="utf-8"
        )
    (tmp_path / "other.pt-BR.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nAnn: a\n", encoding="utf-8")
    for name in ("talk.srt.bak", "notes.docx", "alone.csv", "mute.wma"):
        (tmp_path / name).write_text("start,end\n0,1\n", encoding="utf-8")
    talk(tmp_path / "talk.csv")
    problems = Problems()
    _, media = read_folder(tmp_path, report=problems)
    assert {path.name for part in media.values() for path in part.values()} == {name for name, _ in pairs}
    named = {Path(problem.place).name: problem.kind for problem in problems if problem.kind != "missing_speaker"}
    assert named == {
        "talk.srt.bak": "stray_file",
        "notes.docx": "stray_file",
        "alone.csv": "stray_file",
        "mute.wma": "missing_transcript",
        "talk.en.srt": "stray_file",
    }


def test_recordings_in_folders_are_read_or_reported(tmp_path):
    for place in ("Train/a", "val/b", "TEST/c", "c", "val/part/d", "more/e", "more/f"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{place}.wav").touch()
        talk(tmp_path / f"{place}.csv")
    problems = Problems()
    splits, _ = read_folder(tmp_path, report=problems)
    assert {split: [d.id for d in part.dialogues] for split, part in splits.items()} == {
        "train": ["a"],
        "valid": ["b"],
        "test": ["c"],
    }
    told = {Path(p.place).relative_to(tmp_path).as_posix(): p.message for p in problems if p.kind == "misplaced"}
    assert told.keys() == {".", "val/part", "more"}
    assert told["more"] == "recordings: 2, expected in Train, val, TEST"
    (tmp_path / "dev").mkdir()
    with pytest.raises(ValueError, match="expected one folder of the split valid, got dev, val"):
        read_folder(tmp_path, report=problems)


def test_recordings_whose_names_differ_in_case_do_not_share_a_transcript(tmp_path):
    for name in ("Talk.mp4", "talk.mkv"):
        (tmp_path / name).touch()
    talk(tmp_path / "talk.csv")
    problems = Problems()
    splits, _ = read_folder(tmp_path, report=problems)
    assert [d.id for d in splits["test"].dialogues] == ["Talk"]
    assert [(p.kind, Path(p.place).name) for p in problems if p.kind == "stray_file"] == [("stray_file", "talk.mkv")]


def test_a_recording_is_not_mistaken_for_a_file_beside_it(tmp_path):
    for name in ("talk.mp4", "talk.flac", "talk.jpg", "talk.smi", "alone.xyz", "alone.jpg"):
        (tmp_path / name).touch()
    for name in ("talk.csv", "alone.csv"):
        talk(tmp_path / name)
    problems = Problems()
    _, media = read_folder(tmp_path, report=problems)
    assert sorted(path.name for part in media.values() for path in part.values()) == ["alone.jpg", "talk.mp4"]
    assert {Path(problem.place).name for problem in problems if problem.kind == "stray_file"} == {
        "talk.flac",
        "talk.jpg",
        "talk.smi",
        "alone.xyz",
    }


def test_ids_that_start_again_in_each_transcript_are_told_apart(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.wav").touch()
        talk(tmp_path / f"{name}.csv", ids=("1", "2"))
    problems = Problems()
    splits, _ = read_folder(tmp_path, report=problems)
    ids = {u.id for part in splits.values() for u in part.utterances()}
    assert ids == {f"{name}_{number}" for name in "abc" for number in (1, 2)}
    assert problems == []


def test_labels_that_differ_in_case_are_one_class(tmp_path):
    for name, labels in {"a": ("Calm", "angry"), "b": ("calm", "ANGRY"), "c": ("calm", "angry")}.items():
        (tmp_path / f"{name}.wav").touch()
        talk(tmp_path / f"{name}.csv", labels)
    problems = Problems()
    splits, _ = read_folder(tmp_path, report=problems)
    assert splits["train"].label_names == ["angry", "calm"]
    assert [(p.kind, p.place, p.message) for p in problems] == [
        ("same_class", "angry", "also spelled ANGRY"),
        ("same_class", "calm", "also spelled Calm"),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_drawn_splits_have_labels_and_classes(tmp_path, seed):
    rng = random.Random(seed)
    kinds = [("calm", "calm"), ("angry", "calm"), ("", ""), ("angry", "angry"), ("", ""), ("calm", "angry"), ("", "")]
    for number, labels in enumerate(rng.sample(kinds, len(kinds))):
        (tmp_path / f"{number}.wav").touch()
        talk(tmp_path / f"{number}.csv", labels)
    splits, _ = read_folder(tmp_path, seed=seed, report=Problems())
    for name, part in splits.items():
        assert part.class_counts().min() > 0, name
    again, _ = read_folder(tmp_path, seed=seed, report=Problems())
    assert [d.id for d in again["test"].dialogues] == [d.id for d in splits["test"].dialogues]


def test_captions_with_the_same_words_do_not_roll(tmp_path):
    cues = [
        f"{i}\n00:00:{2 * i:02d},000 --> 00:00:{2 * i + 1:02d},000\nDogs are sitting by the door.\n" for i in range(6)
    ]
    lines, problems = read(tmp_path, "a.srt", "\n".join(cues))
    assert [line.start for line in lines] == [0, 2, 4, 6, 8, 10]
    assert "repeated" not in problems.kinds
