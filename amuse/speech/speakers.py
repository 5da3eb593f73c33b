"""Who speaks when: voices of short windows, clustered, then decoded into turns; at once, or as the sound comes in.

A simpler relative of Landini et al. (2022), "Bayesian HMM clustering of x-vector sequences": agglomerative clustering
finds voices, those that are not worth a speaker of their own are given to the others, and a Viterbi pass with a penalty
for every change of speaker assigns the windows to the speakers.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from amuse.encoders.signal import SAMPLE_RATE
from amuse.speech.voices import VoiceEncoder

WINDOW, STEP = 1.6, 0.2
"""Length of a window and step to the next, in seconds."""
RELIABLE = 0.8
"""Segments of speech shorter than this, in seconds, are not used to find the speakers."""
SAME_VOICE = 0.73
"""Clusters with a mean cosine similarity above this are one speaker."""
WORTH, WORTH_PER_SECOND = 0.2, 0.02
"""Of the other clusters, each is a speaker if the cosines of windows to their speakers, summed over seconds of speech,
would fall by more than this without it, plus so much per second of its speech: little speech must differ more."""
DIFFERENT_VOICE = 0.65
"""Windows with a cosine similarity below this are of two speakers."""
LEAST_SPEECH = 1.5
"""A cluster whose windows cover less than this, in seconds, is given to the others."""
CHANGE, CHANGE_AT_PAUSE = 0.2, 0.05
"""Penalty of a change of speaker, in summed cosines: within a segment of speech, and between two."""
MOST_WINDOWS = 3000
"""With more windows, an even selection is clustered, and the others are assigned; memory is quadratic in this."""
MOST_REMEMBERED = 1000
"""Windows of a conversation that is not over, which are clustered again with every stretch."""


class SpeakerTurn(NamedTuple):
    """Speech of one speaker without a pause: seconds, and the speaker's number by first appearance."""

    start: float
    end: float
    speaker: int


class _Window(NamedTuple):
    piece: int
    centre: float
    seconds: float  # length of the speech that it represents


class _Voices(NamedTuple):
    """Windows of speech and their embeddings `(N, d)`; `clear` ones have a single voice for long enough."""

    windows: list[_Window]
    embeddings: np.ndarray
    seconds: np.ndarray
    clear: np.ndarray

    @property
    def pieces(self) -> list[int]:
        return [window.piece for window in self.windows]


def find_turns(
    samples: np.ndarray, pieces: list[tuple[float, float]], encoder: VoiceEncoder | None, speakers: int | None = None
) -> list[SpeakerTurn]:
    """The speaker of every segment of speech; a segment in which the speaker changes becomes several turns.

    Args:
        samples: float32 `(samples,)` at 16 kHz.
        pieces: Begin and end of segments of speech in seconds, in order.
        encoder: Distinguishes voices; None = a single speaker.
        speakers: Their number; None estimates it.
    """
    if encoder is None or not pieces or speakers == 1:
        return [SpeakerTurn(*piece, 0) for piece in pieces]
    voices = _hear(samples, pieces, encoder)
    centroids = _centroids(voices.embeddings[voices.clear], voices.seconds[voices.clear], speakers)
    states = _decode(voices.embeddings @ centroids.T, voices.pieces)
    return _numbered(_turns(pieces, voices.windows, states), {})


class SpeakersSoFar:
    """The speakers of a conversation that is not over.

    With every stretch of speech, the voices so far are clustered again, as `find_turns` clusters those of a whole
    recording; a cluster keeps the speaker that most of its windows were given before. What was said of earlier
    stretches is not changed.

    Args:
        encoder: Distinguishes voices; None = a single speaker.
        speakers: The largest number of speakers; None = no limit.
    """

    def __init__(self, encoder: VoiceEncoder | None, speakers: int | None = None) -> None:
        self._encoder = None if speakers == 1 else encoder
        self._most = speakers
        self._count = 0
        self._order: dict[int, int] = {}  # speaker -> number by first appearance
        # of clear windows: embeddings, seconds that they represent, speakers that they were given
        self._embeddings = np.zeros((0, 0), np.float32)
        self._seconds = np.zeros(0)
        self._given = np.zeros(0, int)

    def turns(self, samples: np.ndarray, pieces: list[tuple[float, float]]) -> list[SpeakerTurn]:
        """The turns of the next stretch, with the speakers' numbers in the whole conversation.

        Args:
            samples: float32 `(samples,)` at 16 kHz.
            pieces: Begin and end of its segments of speech in seconds from the first sample, in order.
        """
        if self._encoder is None or not pieces:
            return [SpeakerTurn(*piece, 0) for piece in pieces]
        voices = _hear(samples, pieces, self._encoder)
        new = voices.embeddings[voices.clear]
        embeddings = np.concatenate([self._embeddings, new]) if len(self._embeddings) else new
        seconds = np.concatenate([self._seconds, voices.seconds[voices.clear]])
        centroids = _centroids(embeddings, seconds, None)
        if self._most is not None and len(centroids) > self._most:
            centroids = _centroids(embeddings, seconds, self._most)
        names = self._names(centroids)
        given = names[_decode(voices.embeddings @ centroids.T, voices.pieces)]
        self._remember(embeddings, seconds, np.concatenate([self._given, given[voices.clear]]))
        return _numbered(_turns(pieces, voices.windows, given), self._order)

    def _names(self, centroids: np.ndarray) -> np.ndarray:
        """The speaker of each cluster: the one with most of its speech so far, or a new one."""
        shares = np.zeros((len(centroids), self._count))
        if self._count:
            nearest = (self._embeddings @ centroids.T).argmax(axis=1)
            np.add.at(shares, (nearest, self._given), self._seconds)
        names = np.full(len(centroids), -1)
        while shares.size and shares.max() > 0:
            cluster, speaker = np.unravel_index(shares.argmax(), shares.shape)
            names[cluster] = speaker
            shares[cluster], shares[:, speaker] = 0.0, 0.0
        for cluster in np.flatnonzero(names < 0):
            if self._most is None or self._count < self._most:
                names[cluster] = self._count
                self._count += 1
            else:  # there are no more clusters than speakers
                names[cluster] = min(set(range(self._count)) - set(names.tolist()))
        return names

    def _remember(self, embeddings: np.ndarray, seconds: np.ndarray, given: np.ndarray) -> None:
        """Keep the windows; of too many, every second one, which then also represents the next one's speech."""
        if len(embeddings) > MOST_REMEMBERED:
            seconds = np.add.reduceat(seconds, np.arange(0, len(seconds), 2))
            embeddings, given = embeddings[::2], given[::2]
        self._embeddings, self._seconds, self._given = embeddings, seconds, given


def _hear(samples: np.ndarray, pieces: list[tuple[float, float]], encoder: VoiceEncoder) -> _Voices:
    windows = list(_windows(pieces))
    embeddings = encoder([_sound(samples, pieces[window.piece], window.centre) for window in windows]).numpy()
    reliable = np.array([pieces[w.piece][1] - pieces[w.piece][0] >= RELIABLE for w in windows])
    if not reliable.any():
        reliable[:] = True
    clear = reliable & ~_mixed(embeddings, [window.piece for window in windows])
    if not clear.any():
        clear = reliable
    return _Voices(windows, embeddings, np.array([window.seconds for window in windows]), clear)


def _windows(pieces: list[tuple[float, float]]) -> Iterable[_Window]:
    for number, (begin, end) in enumerate(pieces):
        # windows stay inside the segment: somebody else may speak around it
        inner = max(end - begin - WINDOW, 0.0)
        count = int(inner / STEP) + 1
        first = (begin + end - inner) / 2
        for i in range(count):
            centre = first + (i * inner / (count - 1) if count > 1 else inner / 2)
            yield _Window(number, centre, (end - begin) / count)


def _sound(samples: np.ndarray, piece: tuple[float, float], centre: float) -> np.ndarray:
    """The samples of a window; a segment that is too short for it is repeated."""
    length = round(WINDOW * SAMPLE_RATE)
    low, high = (round(edge * SAMPLE_RATE) for edge in piece)
    begin = max(low, round((centre - WINDOW / 2) * SAMPLE_RATE))
    return np.resize(samples[begin : min(begin + length, high)], length)


def _mixed(voices: np.ndarray, pieces: list[int]) -> np.ndarray:
    """Whether a window seems to contain two voices: those before and after it differ."""
    reach = round(WINDOW / 2 / STEP)
    mixed = np.zeros(len(voices), bool)
    for i in range(reach, len(voices) - reach):
        before, behind = i - reach, i + reach
        if pieces[before] == pieces[behind]:
            mixed[i] = voices[before] @ voices[behind] < DIFFERENT_VOICE
    return mixed if not mixed.all() else ~mixed


def _centroids(voices: np.ndarray, seconds: np.ndarray, speakers: int | None) -> np.ndarray:
    """`(speakers, d)`, rows of norm one, from windows `(N, d)` that represent seconds `(N,)` of speech."""
    few = np.linspace(0, len(voices) - 1, min(len(voices), MOST_WINDOWS)).round().astype(int)
    chosen, seconds = voices[few], seconds[few] * len(voices) / len(few)
    if len(chosen) == 1:
        return chosen
    tree = linkage(chosen, "average", metric="cosine")
    if speakers is None:
        clusters = fcluster(tree, 1 - SAME_VOICE, "distance")
        return _worthwhile(chosen, seconds, _means(chosen, clusters, _large(clusters, seconds)))
    # outliers form separate clusters, so more than `speakers` clusters may be needed
    for count in range(speakers, 4 * speakers + 1):
        clusters = fcluster(tree, count, "maxclust")
        names = _large(clusters, seconds)[:speakers]
        if len(names) == speakers:
            return _means(chosen, clusters, names)
    clusters = fcluster(tree, speakers, "maxclust")
    return _means(chosen, clusters, np.unique(clusters))


def _worthwhile(voices: np.ndarray, seconds: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The centroids `(speakers, d)` that remain of `(clusters, d)`, see `WORTH`; the least worth goes first.

    Windows with the sum s, weighted by their seconds, have the summed cosine |s| to their best centroid, s / |s|. So a
    cluster is worth the sum of all |s| less what it is after the others take its windows.
    """
    weighted = seconds[:, None] * voices
    while True:
        for _ in range(2):  # of k-means, after which little changes
            used, owners = np.unique((voices @ centroids.T).argmax(axis=1), return_inverse=True)
            sums = np.stack([weighted[owners == k].sum(axis=0) for k in range(len(used))])
            centroids = _unit(sums)
        if len(centroids) == 1:
            return centroids
        fit, speech = np.linalg.norm(sums, axis=1).sum(), np.bincount(owners, seconds)
        least, remaining = 0.0, None
        # two clusters become one at the same cost whichever goes, so the shorter side counts
        shorter = np.minimum(speech, speech.sum() - speech)
        for k in range(len(centroids)):
            mine, others = owners == k, np.delete(sums, k, axis=0)
            np.add.at(others, (voices[mine] @ np.delete(centroids, k, axis=0).T).argmax(axis=1), weighted[mine])
            worth = fit - np.linalg.norm(others, axis=1).sum() - WORTH - WORTH_PER_SECOND * shorter[k]
            if worth < least:
                least, remaining = worth, _unit(others)
        if remaining is None:
            return centroids
        centroids = remaining


def _large(clusters: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The names of clusters of at least `LEAST_SPEECH`, or else of the largest one; the largest first."""
    names, members = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(members, seconds)
    order = np.argsort(-sizes, kind="stable")
    return names[order][: max(int((sizes >= LEAST_SPEECH).sum()), 1)]


def _means(voices: np.ndarray, clusters: np.ndarray, names: np.ndarray) -> np.ndarray:
    return _unit(np.stack([voices[clusters == name].mean(axis=0) for name in names]))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _decode(scores: np.ndarray, pieces: list[int]) -> np.ndarray:
    """The most likely speaker of each window, `(N,)`, from cosines `(N, speakers)` and penalties for changes."""
    count = scores.shape[1]
    best = scores[0].copy()
    back = np.zeros(scores.shape, int)
    for i in range(1, len(scores)):
        price = CHANGE if pieces[i] == pieces[i - 1] else CHANGE_AT_PAUSE
        changed = int(best.argmax())
        stay = best >= best[changed] - price
        back[i] = np.where(stay, np.arange(count), changed)
        best = np.where(stay, best, best[changed] - price) + scores[i]
    states = np.empty(len(scores), int)
    states[-1] = best.argmax()
    for i in range(len(scores) - 1, 0, -1):
        states[i - 1] = back[i, states[i]]
    return states


def _turns(pieces: list[tuple[float, float]], windows: list[_Window], states: np.ndarray) -> Iterable[SpeakerTurn]:
    last: tuple[_Window, int] | None = None
    begin = 0.0
    for window, state in zip(windows, states.tolist(), strict=True):
        if last is None or last[0].piece != window.piece:
            if last is not None:
                yield SpeakerTurn(begin, pieces[last[0].piece][1], last[1])
            begin = pieces[window.piece][0]
        elif state != last[1]:
            change = (last[0].centre + window.centre) / 2
            yield SpeakerTurn(begin, change, last[1])
            begin = change
        last = window, state
    if last is not None:
        yield SpeakerTurn(begin, pieces[last[0].piece][1], last[1])


def _numbered(turns: Iterable[SpeakerTurn], order: dict[int, int]) -> list[SpeakerTurn]:
    """Speakers in order of first appearance; `order` has those of earlier turns, and new ones are added to it."""
    return [turn._replace(speaker=order.setdefault(turn.speaker, len(order))) for turn in turns]
