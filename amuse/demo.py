"""`amuse demo`: a local page that plays a video through a trained run and explains each prediction."""

import html
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from amuse.data.clock import clock
from amuse.data.conversation import Dialogue
from amuse.data.problems import Problem, problem_table
from amuse.explain.explanation import DEFAULTS
from amuse.inference.prediction import PredictedUtterance, rows
from amuse.inference.recording import Recognizer
from amuse.media.cartoon import write_talk
from amuse.media.extract import Perception
from amuse.report import Content, Turn, render, write_report
from amuse.report.from_recording import explain_turn, recording_content

HOST = "127.0.0.1"
HEADERS = ["", "time", "speaker", "emotion", "sure", "words"]
CSS = ".explanation iframe { width: 100%; height: 46rem; border: 0; } .status textarea { font-family: monospace; }"


@dataclass(frozen=True)
class Talk:
    """A recording as far as it has been heard.

    Attributes:
        name: Of the file.
        dialogue: The utterances so far, with features.
        seen: What was heard and seen in each.
        rows: What the model says of each, knowing the others so far.
        count: Utterances of the whole recording.
        problems: What could not be used.
        turns: Position -> explanation, as far as anybody asked.
    """

    name: str
    dialogue: Dialogue
    seen: list[Perception]
    rows: list[PredictedUtterance]
    count: int
    problems: list[Problem]
    turns: dict[int, Turn] = field(default_factory=dict)


def listen(recognizer: Recognizer, media: Path, transcript: Path | None) -> Iterator[Talk]:
    """The recording after its first utterance, after its second, and so on; the last one is all of it.

    Raises:
        As of `Recognizer.listen`.
    """
    problems: list[Problem] = []
    plain, utterances = recognizer.listen(media, transcript, problems.append)
    dialogue = Dialogue(plain.id, [])
    seen: list[Perception] = []
    for utterance, perception in utterances:
        dialogue = Dialogue(plain.id, [*dialogue.utterances, utterance])
        seen = [*seen, perception]
        said = rows(dialogue, recognizer.predict(dialogue), recognizer.model.spec.label_names, recognizer.temperature)
        yield Talk(media.name, dialogue, seen, said, len(plain), list(problems))


def explained(recognizer: Recognizer, talk: Talk, position: int) -> Turn:
    """The explanation of one utterance; computed once."""
    if position not in talk.turns:
        talk.turns[position] = explain_turn(recognizer, talk.dialogue, position, talk.seen[position], DEFAULTS)
    return talk.turns[position]


def explanation(recognizer: Recognizer, talk: Talk, position: int) -> str:
    """HTML of one utterance's explanation: a part of the report, in a frame that may run nothing and load nothing."""
    import torch

    turn = explained(recognizer, talk, position)
    turns = []
    for utterance, row in zip(talk.dialogue.utterances, talk.rows, strict=True):
        said = torch.tensor(list(row.probabilities.values()) or [row.value])
        turns.append(Turn(utterance, replace(turn.explanation, probabilities=said)))  # their context, not their reasons
    turns[position] = turn
    page = render(_content(recognizer, talk, turns), only=position)
    return f'<iframe sandbox title="Explanation of utterance {position + 1}" srcdoc="{html.escape(page)}"></iframe>'


def _content(recognizer: Recognizer, talk: Talk, turns: list[Turn]) -> Content:
    return recording_content(recognizer, talk.name, turns, DEFAULTS)


def build(recognizer: Recognizer, folder: Path) -> Any:
    """The page, a `gradio.Blocks`. Only files that the page's visitor uploaded are read.

    Args:
        recognizer: Says what the emotions are.
        folder: Takes reports and made-up talks; inside the folder for temporary files.
    """
    gr = _gradio()

    def on_example() -> tuple[str, str]:
        video = Path(tempfile.mkdtemp(dir=folder)) / "cartoon.webm"
        write_talk(video, utterances=6, seed=random.randrange(1_000_000))
        return str(video), str(video.with_suffix(".csv"))

    def on_listen(video: str | None, transcript: str | None) -> Iterator[tuple[Any, ...]]:
        rest = ("", gr.update(visible=False))  # explanation and report of an earlier recording
        if video is None:
            yield None, [], "no video yet: drop one, record one, or take a cartoon talk", *rest
            return
        yield None, [], "listening ...", *rest
        table: list[list[str]] = []
        try:
            for talk in listen(recognizer, Path(video), Path(transcript) if transcript else None):
                table = [_cells(number, row) for number, row in enumerate(talk.rows, 1)]
                yield talk, table, f"{len(table)} of {talk.count} utterances", *rest
            status = f"{talk.count} utterances; click one for its explanation\n{problem_table(talk.problems)}"
            yield talk, table, status, *rest
        except (ValueError, OSError, ImportError) as error:
            yield None, table, f"{Path(video).name}: {error}", *rest

    def on_click(talk: Talk | None, event: gr.SelectData) -> str:  # type: ignore[name-defined]  # gradio reads it
        return "" if talk is None else explanation(recognizer, talk, int(event.row_value[0]) - 1)

    def on_report(talk: Talk | None) -> Iterator[tuple[str, Any]]:
        if talk is None:
            yield "nothing to report yet: listen to a video first", gr.update(visible=False)
            return
        turns = []
        for position in range(len(talk.dialogue)):
            yield f"explaining {position + 1} of {len(talk.dialogue)}", gr.update(visible=False)
            turns.append(explained(recognizer, talk, position))
        out = Path(tempfile.mkdtemp(dir=folder)) / "report.html"
        write_report(_content(recognizer, talk, turns), out)
        yield "the report is ready", gr.update(value=str(out), visible=True)

    with gr.Blocks(title="amuse demo", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# What a model hears and sees\nEmotions are what it predicts, not what anybody felt.")
        talk = gr.State(None)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                video = gr.Video(label="Video", sources=["upload", "webcam"], height=300)
                transcript = gr.File(label="Transcript, CSV or SRT (optional)", file_types=[".csv", ".srt"], height=110)
                with gr.Row():
                    example = gr.Button("Cartoon talk", min_width=100)
                    start = gr.Button("Listen", variant="primary", min_width=100)
            with gr.Column(scale=3, min_width=400):
                table = gr.Dataframe(
                    headers=HEADERS,
                    datatype="str",
                    interactive=False,
                    wrap=True,
                    label="Utterances",
                    elem_classes="utterances",
                    column_widths=["7%", "14%", "14%", "15%", "10%", "40%"],
                    buttons=[],
                )
                status = gr.Textbox(label="Status", interactive=False, lines=1, elem_classes="status")
                with gr.Row():
                    make = gr.Button("Make report", min_width=100)
                    download = gr.DownloadButton("Download report", visible=False, min_width=100)
        reasons = gr.HTML(elem_classes="explanation")
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        example.click(on_example, None, [video, transcript], api_visibility="private")
        start.click(on_listen, [video, transcript], [talk, table, status, reasons, download], **quiet)
        table.select(on_click, talk, reasons, api_visibility="private")
        make.click(on_report, talk, [status, download], **quiet)
    return page


def launch(page: Any, port: int | None) -> str:
    """Serves the page to this machine alone, in a thread; its address.

    Raises:
        ValueError: The port is taken.
    """
    gr = _gradio()
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    served = {"theme": theme, "css": CSS, "footer_links": [], "share": False, "ssr_mode": False, "quiet": True}
    try:
        return page.launch(server_name=HOST, server_port=port, prevent_thread_lock=True, **served)[1]
    except OSError as error:
        raise ValueError(f"--port: expected a free port, got {port}: {error}") from None


def demo(run: Path, port: int | None) -> None:
    """Serve the page of a trained run until Ctrl-C.

    Raises:
        FileNotFoundError: No run.
        ValueError: The run's features cannot be computed from a recording, or the port is taken.
        ImportError: gradio or an encoder of the run is missing.
    """
    _gradio()
    recognizer = Recognizer(run)
    with tempfile.TemporaryDirectory(prefix="amuse-demo-") as folder:
        page = build(recognizer, Path(folder))
        print(f"{launch(page, port)} listens; Ctrl-C ends it", flush=True)
        page.block_thread()


def _cells(number: int, row: PredictedUtterance) -> list[str]:
    said = row.emotion or f"{row.value:.2f}"
    sure = "" if row.probability is None else f"{100 * row.probability:.0f} %"
    return [str(number), clock(row.start), row.speaker, said, sure, row.text or ""]


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported; nothing is sent anywhere
    try:
        import gradio
    except ImportError:
        raise ImportError("the demo page needs gradio: pip install amuse-kernels[demo]") from None
    return gradio
