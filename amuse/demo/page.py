"""The page of `amuse demo`, from Gradio's components and our own `talk.html`, `talk.js` and `page.css`."""

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amuse.demo.live import add_live
from amuse.demo.talk import Talk, explained, explanation_page, recognize, report_content
from amuse.demo.view import error_html, finished_html, frame_html, progress_html, talk_html
from amuse.errors import in_words
from amuse.files import write_text
from amuse.inference.recording import Recognizer
from amuse.media.cartoon import write_talk
from amuse.report import write_report

HOST = "127.0.0.1"
HERE = Path(__file__).parent
TITLE = "Emotions in a conversation"
INTRODUCTION = (
    f"# {TITLE}\nWho shows which emotion when, as a model predicts it; nobody can see what people feel. "
    "Everything stays on this machine."
)
TRANSCRIPTS = [".csv", ".tsv", ".srt", ".vtt", ".json", ".jsonl"]


def build(recognizer: Recognizer, folder: Path) -> Any:
    """The page, a `gradio.Blocks`. Only files that the page's visitor uploaded are read.

    Args:
        recognizer: The model and the encoders of its features.
        folder: For reports, corrections and generated talks; inside the folder for temporary files.
    """
    gr = _gradio()

    def new_file(name: str) -> Path:
        return Path(tempfile.mkdtemp(dir=folder)) / name

    def on_example() -> tuple[str, str]:
        video = new_file("cartoon.webm")
        write_talk(video, utterances=6, seed=random.randrange(1_000_000))
        return str(video), str(video.with_suffix(".csv"))

    def on_video(video: str | None) -> tuple[Any, ...]:
        """Show a new recording, without any results yet."""
        return gr.update(interactive=video is not None), None, "", "", "", *_report(gr, None)

    def on_recognize(video: str | None, transcript: str | None) -> Iterator[tuple[Any, ...]]:
        rest = ("", *_report(gr, None))
        if video is None:
            yield None, "", error_html("Drop a video first, record one, or take a cartoon talk."), *rest
            return
        shown = ""
        yield None, shown, progress_html("Finding the utterances …"), *rest
        try:
            for talk in recognize(recognizer, Path(video), Path(transcript) if transcript else None):
                shown = talk_html(talk)
                yield None, shown, progress_html("Listening and looking:", len(talk.rows), talk.count), *rest
            yield talk, shown, finished_html(talk), "", *_report(gr, talk)
        except (ValueError, OSError, ImportError) as error:
            yield None, shown, error_html(f"{Path(video).name} could not be used. {in_words(error)}"), *rest

    def on_corrections(video: str | None, event: gr.EventData) -> Iterator[tuple[Any, ...]]:  # type: ignore[name-defined]
        transcript = new_file("corrected.csv")
        write_text(event.csv, transcript)
        for update in on_recognize(video, str(transcript)):
            yield str(transcript), *update

    def on_why(talk: Talk | None, event: gr.EventData) -> Iterator[tuple[str, Any]]:  # type: ignore[name-defined]
        if talk is not None:
            yield progress_html(f"Explaining utterance {event.position + 1} …"), gr.skip()
            page = explanation_page(recognizer, talk, event.position)
            yield finished_html(talk), frame_html(page, event.position + 1)

    def on_report(talk: Talk | None) -> Iterator[tuple[Any, ...]]:
        if talk is None:
            return
        turns = []
        for position in range(len(talk.dialogue)):
            yield progress_html("Explaining:", position, talk.count), gr.update(interactive=False), gr.skip()
            turns.append(explained(recognizer, talk, position))
        out = new_file("report.html")
        write_report(report_content(recognizer, talk, turns), out)
        yield finished_html(talk), gr.update(interactive=True), gr.update(value=str(out), visible=True)

    def add_recording() -> None:
        talk = gr.State(None)
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                video = gr.Video(label="Video", sources=["upload", "webcam"], height=340, elem_id="player")
            with gr.Column(scale=2, min_width=280):
                transcript = gr.File(label="Transcript (optional)", file_types=TRANSCRIPTS, height=120)
                start = gr.Button("Recognize emotions", variant="primary", interactive=False)
                example = gr.Button("Try a cartoon talk")
                status = gr.HTML(elem_id="status")
        conversation = gr.HTML(
            elem_id="conversation", apply_default_css=False, js_on_load=(HERE / "talk.js").read_text(encoding="utf-8")
        )
        with gr.Row():
            make = gr.Button("Make a report of all reasons", visible=False)
            download = gr.DownloadButton("Download the report", variant="primary", visible=False)
        reasons = gr.HTML(elem_classes="explanation", apply_default_css=False)
        private = {"api_visibility": "private"}
        quiet = {"show_progress": "hidden", **private}
        results = [talk, conversation, status, reasons, make, download]
        example.click(on_example, None, [video, transcript], **private)
        video.change(on_video, video, [start, *results], **quiet)
        start.click(on_recognize, [video, transcript], results, **quiet)
        conversation.submit(on_corrections, video, [transcript, *results], **quiet)
        conversation.select(on_why, talk, [status, reasons], **quiet)
        make.click(on_report, talk, [status, make, download], **quiet)

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Tabs():
            with gr.Tab("A recording"):
                add_recording()
            with gr.Tab("Live"):
                add_live(gr, recognizer, new_file)
    return page


def launch(page: Any, port: int | None) -> str:
    """Serve the page to this machine only, in a thread; returns its address.

    Raises:
        ValueError: The port is taken.
    """
    gr = _gradio()
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    css = (HERE / "page.css").read_text(encoding="utf-8")
    served = {"theme": theme, "css": css, "footer_links": [], "share": False, "ssr_mode": False, "quiet": True}
    try:
        return page.launch(server_name=HOST, server_port=port, prevent_thread_lock=True, **served)[1]
    except OSError as error:
        raise ValueError(f"--port: expected a free port, got {port}: {error}") from None


def serve(run: Path, port: int | None) -> None:
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
        print(f"{launch(page, port)} is ready; Ctrl-C stops it", flush=True)
        page.block_thread()


def _report(gr: Any, talk: Talk | None) -> tuple[Any, Any]:
    """After a recording is finished: show the button that makes a report, hide the one that downloads it."""
    return gr.update(visible=talk is not None, interactive=True), gr.update(visible=False)


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported; nothing is sent anywhere
    try:
        import gradio
    except ImportError:
        raise ImportError("the demo page needs gradio: pip install amuse-kernels[demo]") from None
    return gradio
