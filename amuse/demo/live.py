"""The page's live conversation: what a microphone and a camera give, and the view of what was understood."""

from collections import deque
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from amuse.data.clock import clock
from amuse.demo.talk import row_prediction
from amuse.demo.view import error_html, row_cells
from amuse.encoders.signal import SAMPLE_RATE
from amuse.errors import in_words
from amuse.inference.recording import Recognizer
from amuse.live import Live, Lost, Spoken
from amuse.live.writing import LiveTranscript
from amuse.media.picture import picture
from amuse.media.tracks import pyav
from amuse.report.outcome import Outcome
from amuse.report.templates import template
from amuse.speech import Transcriber

MOST_SHOWN = 100
"""Utterances on the page, the last ones; the file has all of them."""
IN_VIEW = 60.0
"""Seconds that the timeline shows."""
SHORTEST_VIEW = 20.0


class LiveTalk:
    """One visitor's conversation.

    Args:
        recognizer, transcriber: The models.
        transcript: The file of all utterances.
    """

    def __init__(self, recognizer: Recognizer, transcriber: Transcriber, transcript: Path) -> None:
        self.label_names = recognizer.model.spec.label_names
        self.path = transcript
        self.count = 0
        self.ended = False
        self._events: deque[Spoken | Lost] = deque(maxlen=MOST_SHOWN)
        self._new = False
        self._lock = Lock()
        self._resampler: Any = None
        self._transcript = LiveTranscript(transcript).__enter__()
        self.live = Live(recognizer, self._show, transcriber=transcriber)

    def hear(self, rate: int, samples: np.ndarray) -> None:
        """Take sound from the browser: int16 `(samples,)` or `(samples, channels)` at its own rate."""
        with self._lock:
            if not self.ended:
                self.live.hear(self._at_our_rate(rate, samples))

    def see(self, image: np.ndarray) -> None:
        """Take a picture of the camera, uint8 `(H, W, 3)`, as the newest one; it is scaled down as a file's are."""
        small = picture(pyav().VideoFrame.from_ndarray(image, format="rgb24"))
        with self._lock:
            if not self.ended:
                self.live.see(lambda: small, small.nbytes)

    def finish(self) -> None:
        """End the conversation; whatever was said is understood first."""
        with self._lock:
            self.ended = True
        self.live.finish()
        self._transcript.__exit__(None, None, None)

    def abandon(self) -> None:
        """End the conversation of a visitor who has gone."""
        self.ended = True
        self.live.stop()
        self._transcript.__exit__(None, None, None)

    def news(self) -> str | None:
        """The view, if it has changed since it was last asked for."""
        new, self._new = self._new, False
        return self.view() if new else None

    def view(self) -> str:
        """A timeline of the last minute with a lane per speaker, and the last utterances, the newest first."""
        events = list(self._events)
        rows = [event.understood.row for event in events if isinstance(event, Spoken)]
        outcome = Outcome.of(self.label_names, [row_prediction(row) for row in rows] or [torch.zeros(1)])
        end = max([self.live.seconds if not self.ended else 0.0, SHORTEST_VIEW, *(each.end for each in rows)])
        begin = max(end - IN_VIEW, 0.0)
        shown: list[dict[str, Any]] = []
        number = self.count - len(rows)
        for event in events:
            if isinstance(event, Lost):
                shown.append({"lost": event.reason, "clock": clock(event.start), "until": clock(event.end)})
                continue
            number += 1
            row = event.understood.row
            cells = row_cells(number, row, row_prediction(row), outcome, end, begin)
            shown.append({**cells, "visible": row.end > begin, "delay": f"{event.delay:.1f} s"})
        return template("amuse.demo", "live.html").render(
            rows=shown,
            speakers=list(dict.fromkeys(row.speaker for row in rows)),
            begin=clock(begin),
            end=clock(end),
            lost=len(self.live.lost),
            hidden=self.count - len(rows),
        )

    def status(self) -> str:
        """The current state, in a sentence."""
        if self.ended:
            told = f"The conversation has ended: {self.count} utterance{'s' * (self.count != 1)}."
            return f'<p role="status" class="stage">{told}{self._dropped()}</p>'
        now = "Somebody is speaking" if self.live.speaking else "Listening"
        waiting = self.live.waiting
        busy = f", {waiting} stretch{'es' * (waiting != 1)} of speech being understood" if waiting else ""
        state = "speaking" if self.live.speaking else "silent"
        return (
            f'<p role="status" class="stage {state}"><i class="lamp"></i>{now}{busy}. '
            f"{clock(self.live.seconds)}{self._dropped()}</p>"
        )

    def _dropped(self) -> str:
        lost = self.live.lost
        if not lost:
            return ""
        seconds = sum(each.seconds for each in lost)
        return f" <strong>{seconds:.0f} s of speech dropped: this machine does not keep up.</strong>"

    def _show(self, event: Spoken | Lost) -> None:
        self._events.append(event)
        if isinstance(event, Spoken):
            self.count += 1
            self._transcript.add(event)
        self._new = True

    def _at_our_rate(self, rate: int, samples: np.ndarray) -> np.ndarray:
        if self._resampler is None:
            self._resampler = pyav().AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
        mono = samples if samples.ndim == 1 else samples.mean(axis=1).astype(np.int16)
        frame = pyav().AudioFrame.from_ndarray(np.ascontiguousarray(mono[None]), format="s16", layout="mono")
        frame.sample_rate = rate
        parts = [part.to_ndarray()[0] for part in self._resampler.resample(frame)]
        return np.concatenate([np.zeros(0, np.float32), *parts])


def add_live(gr: Any, recognizer: Recognizer, new_file: Any) -> None:
    """Put the live conversation into the part of the page that is being built.

    Args:
        gr: The module gradio.
        recognizer: The model and the encoders of its features.
        new_file: Takes a name and gives the path of a new file.
    """
    looks = recognizer.extractor is not None and recognizer.extractor.options.vision is not None
    transcribers: list[Transcriber] = []  # loaded for the first visitor who speaks
    nothing = (gr.skip(), gr.skip(), gr.skip())

    def on_start() -> Any:
        yield None, '<p role="status" class="stage">Loading the speech model …</p>', "", gr.update(visible=False)
        try:
            transcribers[:] = transcribers or [Transcriber()]
            talk = LiveTalk(recognizer, transcribers[0], new_file("live.csv"))
        except (ValueError, OSError, ImportError) as error:
            yield None, error_html(f"This page cannot listen. {in_words(error)}"), "", gr.skip()
            return
        yield talk, talk.status(), "", gr.skip()

    def on_sound(chunk: tuple[int, np.ndarray] | None, talk: LiveTalk | None) -> Any:
        if chunk is None or talk is None or talk.ended:
            return nothing
        try:
            talk.hear(*chunk)
        except (ValueError, OSError) as error:
            return talk, error_html(f"Listening ended. {in_words(error)}"), gr.skip()
        return talk, talk.status(), talk.news() or gr.skip()

    def on_picture(image: np.ndarray | None, talk: LiveTalk | None) -> None:
        if image is not None and talk is not None:
            talk.see(image)

    def on_stop(talk: LiveTalk | None) -> Any:
        if talk is None or talk.ended:
            yield (*nothing[:2], gr.skip())
            return
        talk.finish()
        yield talk.status(), talk.view(), gr.update(value=str(talk.path), visible=talk.count > 0)

    talk = gr.State(None, time_to_live=3600, delete_callback=lambda talk: talk is not None and talk.abandon())
    gr.Markdown(
        "Emotions appear shortly after each pause. Sound and pictures are forgotten after a minute, "
        "and stay on this machine."
    )
    with gr.Row():
        microphone = gr.Audio(
            label="Microphone", sources=["microphone"], streaming=True, type="numpy", elem_id="microphone", scale=3
        )
        if looks:
            camera = gr.Image(
                label="Camera", sources=["webcam"], streaming=True, type="numpy", height=220, elem_id="camera", scale=2
            )
    status = gr.HTML(elem_id="live-status")
    conversation = gr.HTML(elem_id="live", apply_default_css=False)
    download = gr.DownloadButton("Save as CSV", visible=False)
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    microphone.start_recording(on_start, None, [talk, status, conversation, download], **quiet)
    microphone.stream(on_sound, [microphone, talk], [talk, status, conversation], stream_every=0.5, **quiet)
    microphone.stop_recording(on_stop, talk, [status, conversation, download], **quiet)
    if looks:
        camera.stream(on_picture, [camera, talk], None, stream_every=0.25, **quiet)
