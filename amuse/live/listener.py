"""Listens in one thread and predicts in another, with bounded memory and a bounded delay."""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import NamedTuple, Protocol

import numpy as np

from amuse.data.problems import Problem
from amuse.encoders.signal import SAMPLE_RATE
from amuse.inference.recording import Recognizer
from amuse.live.memory import RecentPictures, RecentSound
from amuse.live.understanding import Understanding, Understood
from amuse.live.voice import Stretch, VoiceGate
from amuse.media.tracks import MediaError
from amuse.speech import SpeechOptions, Transcriber
from amuse.speech.utterances import LONGEST_STRETCH

WHILE_BUSY = 15.0
"""Seconds of sound that are remembered beyond those that may be needed, while a stretch is understood."""
MOST_PROBLEMS = 200
"""Problems of the media that are kept, the latest."""


@dataclass(frozen=True)
class LiveOptions:
    """Options of a live conversation.

    Attributes:
        speech: Speech to text and speakers.
        patience: Seconds that speech may wait until there is time for it; older speech is dropped.

    Raises:
        ValueError: A patience of zero or less.
    """

    speech: SpeechOptions = field(default_factory=SpeechOptions)
    patience: float = 20.0

    def __post_init__(self) -> None:
        if not self.patience > 0:
            raise ValueError(f"patience: expected seconds above 0, got {self.patience}")


class Spoken(NamedTuple):
    """An utterance with its prediction; `delay` is the time in seconds since its last sound was heard."""

    understood: Understood
    delay: float


class Lost(NamedTuple):
    """Speech that was dropped, in seconds, and why."""

    start: float
    end: float
    reason: str

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Understands(Protocol):
    """Makes the utterances of a stretch, see `Understanding`."""

    def __call__(self, stretch: Stretch) -> Iterator[Understood]: ...


class Live:
    """A conversation while it is spoken. `hear` and `see` take what comes in, `show` is told what comes out.

    Args:
        recognizer: The model and the encoders of its features.
        show: Called with every `Spoken` and `Lost`, by one thread at a time.
        options: Speech, and how long it may wait.
        transcriber: Has loaded its models already; None = that of `options.speech`.
        understand, gate, clock: Replace the models, the voice activity, and the clock in seconds.

    Attributes:
        lost: What was dropped.
        problems: The last problems of the media.
        looks: Whether the model reads pictures.
        description: The models that find words and speakers.

    Raises:
        ImportError, FileNotFoundError, ValueError: See `Understanding`.
    """

    def __init__(
        self,
        recognizer: Recognizer | None,
        show: Callable[[Spoken | Lost], None],
        options: LiveOptions | None = None,
        *,
        transcriber: Transcriber | None = None,
        understand: Understands | None = None,
        gate: VoiceGate | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or LiveOptions()
        remembered = self.options.patience + LONGEST_STRETCH + WHILE_BUSY
        self.sound, self.pictures = RecentSound(remembered), RecentPictures(remembered)
        self.lost: list[Lost] = []
        self.problems: deque[Problem] = deque(maxlen=MOST_PROBLEMS)
        self.looks, self.description = False, ""
        if understand is None:
            assert recognizer is not None
            transcriber = transcriber or Transcriber(self.options.speech)
            understand = Understanding(recognizer, self.sound, self.pictures, transcriber, self.problems.append)
            self.looks, self.description = understand.looks, understand.description
        self._understand, self._show, self._clock = understand, show, clock
        self._gate = gate or VoiceGate()
        self._arrivals: deque[tuple[int, float]] = deque()  # samples so far, and when
        self._waiting: deque[Stretch] = deque()
        self._busy = self._ending = False
        self._failure: BaseException | None = None
        self._changed = Condition()
        self._thread = Thread(target=self._work, name="amuse live", daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """Seconds of sound so far."""
        return self.sound.heard / SAMPLE_RATE

    @property
    def speaking(self) -> bool:
        """Whether somebody is speaking now."""
        return self._gate.speaking

    @property
    def waiting(self) -> int:
        """Stretches of speech that wait, or are being understood."""
        return len(self._waiting) + self._busy

    def hear(self, samples: np.ndarray) -> None:
        """Take the next samples, float32 at 16 kHz; returns at once.

        Raises:
            Exception: That which ended the predictions.
        """
        if self._failure is not None:
            raise self._failure
        self.sound.add(samples)
        with self._changed:
            self._arrivals.append((self.sound.heard, self._clock()))
            while self._arrivals[0][0] < self.sound.heard - self.sound.size:
                self._arrivals.popleft()
        self._queue(self._gate.hear(samples))
        self._drop_late()

    def see(self, picture: Callable[[], np.ndarray], nbytes: int, time: float | None = None) -> None:
        """Take the next picture, see `RecentPictures.add`; without a time, it belongs to the newest sound."""
        if self.looks:
            self.pictures.add(self.seconds if time is None else time, picture, nbytes)

    def catch_up(self) -> None:
        """Wait until everything that was heard is understood."""
        with self._changed:
            self._changed.wait_for(lambda: not self.waiting or self._failure is not None)
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """End the conversation: the last stretch is closed, and whatever waits is understood first."""
        self._queue(self._gate.finish())
        try:
            self.catch_up()
        finally:
            self.stop()

    def stop(self) -> None:
        """End at once; what waits is given up."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()

    def _queue(self, stretches: Iterator[Stretch]) -> None:
        for stretch in stretches:
            with self._changed:
                self._waiting.append(stretch)
                self._changed.notify_all()

    def _drop_late(self) -> None:
        while True:
            with self._changed:
                behind = self.seconds - self._waiting[0].end if self._waiting else 0.0
                if behind <= self.options.patience:
                    return
                stretch = self._waiting.popleft()
                self._drop(stretch, f"{behind:.0f} s behind")

    def _drop(self, stretch: Stretch, reason: str) -> None:
        self.lost.append(Lost(stretch.start, stretch.end, reason))
        self._show(self.lost[-1])

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting) or self._ending)
                if self._ending:
                    return
                stretch, self._busy = self._waiting.popleft(), True
            try:
                self._work_on(stretch)
            except BaseException as failure:
                with self._changed:
                    self._failure, self._busy = failure, False
                    self._changed.notify_all()
                return

    def _work_on(self, stretch: Stretch) -> None:
        try:
            for understood in self._understand(stretch):
                delay = self._clock() - self._heard_at(understood.row.end)
                with self._changed:
                    self._show(Spoken(understood, delay))
                if self._ending:
                    return
        except MediaError as error:
            with self._changed:
                self._drop(stretch, str(error))

    def _heard_at(self, seconds: float) -> float:
        """When the sound at that time of the conversation came in."""
        with self._changed:
            place = bisect_left(self._arrivals, (round(seconds * SAMPLE_RATE), 0.0))
            return self._arrivals[min(place, len(self._arrivals) - 1)][1]
