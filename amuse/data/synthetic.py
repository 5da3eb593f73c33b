"""Small trimodal conversations with planted structure: the emotion follows only from all modalities and the speaker.

How an utterance is generated:

1. Three factors are drawn, and `EMOTION_OF` maps them to one of six emotions: the words are plain, kind or harsh; the
   voice is calm or excited; the face smiles or frowns. Kind words from a frowning face are sarcasm. `imbalance` sets
   how unequal the emotions' frequencies are, and a share `label_noise` of the labels is replaced by another one.
2. Text: filler words, and for kind or harsh words one word of that tone. With probability `contrast` there is a word
   of the opposite tone as well; the one that counts is the one during which the voice bursts.
3. Voice: a burst of one token. Its level is -1 when a quiet speaker is calm, 0 when a quiet speaker is excited or a
   loud one is calm, +1 when a loud one is excited. So half of the bursts are ambiguous unless the speaker is known to
   be quiet or loud, which their other utterances in the dialogue reveal. What the burst adds is subtracted from the
   other tokens, so the mean over tokens is uninformative.
4. Face: one or two apex frames smile or frown, the others rest; each speaker has their own look in all frames.

The last four features of all three streams are a clock, the token's time within the utterance. An utterance lacks each
modality with probability `absent_rate`, but never all three. Words, directions and the table are the same for every
split and seed; each dialogue draws its speakers' habits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np
import torch

from amuse.config import SPLITS
from amuse.data.conversation import Conversations, Dialogue, Utterance

EMOTIONS = ("neutral", "joy", "sadness", "anger", "surprise", "contempt")
WORD_TONES = ("plain", "kind", "harsh")
VOICES = ("calm", "excited")
MODALITIES = {"text": 24, "audio": 16, "video": 20}
CLOCK = 4

EMOTION_OF = {
    ("plain", "calm", "smile"): "neutral",
    ("plain", "calm", "frown"): "sadness",
    ("plain", "excited", "smile"): "surprise",
    ("plain", "excited", "frown"): "anger",
    ("kind", "calm", "smile"): "joy",
    ("kind", "calm", "frown"): "contempt",
    ("kind", "excited", "smile"): "surprise",
    ("kind", "excited", "frown"): "contempt",
    ("harsh", "calm", "smile"): "neutral",
    ("harsh", "calm", "frown"): "sadness",
    ("harsh", "excited", "smile"): "joy",
    ("harsh", "excited", "frown"): "anger",
}

WORDS = {
    "plain": ["well", "so", "then", "the", "train", "coffee", "table", "we", "you", "maybe", "tomorrow", "door"],
    "kind": ["lovely", "wonderful", "thanks", "great", "sweet", "brilliant"],
    "harsh": ["awful", "stupid", "terrible", "useless", "ruined", "horrible"],
}
SPEAKERS = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana")


@dataclass(frozen=True)
class SharedVectors:
    """Vectors of words and directions of voice and face that all generated conversations share.

    Attributes:
        words: Word -> float32 `(20,)`.
        onset, level: Voice directions float32 `(12,)`: that there is a burst, and how loud it is.
        expression: Face direction float32 `(16,)`; plus smiles, minus frowns.
    """

    words: dict[str, np.ndarray]
    onset: np.ndarray
    level: np.ndarray
    expression: np.ndarray


@cache
def shared_vectors() -> SharedVectors:
    """The same vectors in every process."""
    rng = np.random.default_rng(20240127)
    text, audio, video = (width - CLOCK for width in MODALITIES.values())
    words = {word: _vector(rng, text, 2.0) for tone in WORD_TONES for word in WORDS[tone]}
    onset, level = _vector(rng, audio, 2.0), _vector(rng, audio, 2.0)
    return SharedVectors(words, onset, level, _vector(rng, video, 2.0))


def synthetic_conversations(
    split: str,
    *,
    num_dialogues: int,
    seed: int = 0,
    imbalance: float = 2.0,
    label_noise: float = 0.03,
    contrast: float = 0.0,
    absent_rate: float = 0.0,
    noise: float = 0.2,
    turns: tuple[int, int] = (5, 12),
) -> Conversations:
    """Generates one split, as the module's docstring describes.

    Args:
        split: `"train"`, `"valid"` or `"test"`; the splits of one seed are independent.
        num_dialogues: Dialogues, of 2 to 4 speakers each.
        seed: The same arguments give the same conversations.
        imbalance: Ratio of the frequencies of the first and the last emotion; geometric in between.
        label_noise: Share of labels that are replaced by another one.
        contrast: Share of kind or harsh utterances that also hold a word of the opposite tone.
        absent_rate: Probability that an utterance lacks a modality, independent for each.
        noise: Deviation of the feature noise; words and directions have length 2.
        turns: Fewest and most utterances of a dialogue.

    Returns:
        Classes `EMOTIONS`, modalities text 24, audio 16, video 20 features wide, 3 to 10 tokens each. `text` holds the
        words, one for each text token; `evidence` names the tokens that carry the factors.

    Raises:
        ValueError: An argument out of its range.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if num_dialogues < 1 or not 1 <= turns[0] <= turns[1] or not imbalance >= 1 or not noise >= 0:
        raise ValueError(
            "num_dialogues, turns, imbalance, noise: expected at least 1, 1 <= fewest <= most, at least 1, at least 0; "
            f"got {num_dialogues}, {turns}, {imbalance}, {noise}"
        )
    for name, rate in (("label_noise", label_noise), ("contrast", contrast), ("absent_rate", absent_rate)):
        if not 0 <= rate < 1:
            raise ValueError(f"{name}: expected a probability in [0, 1), got {rate}")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    factors, frequencies = _factor_prior(imbalance)
    cumulative = np.cumsum(frequencies)

    dialogues = []
    for d in range(num_dialogues):
        names = rng.choice(SPEAKERS, size=rng.integers(2, 5), replace=False)
        loud = rng.integers(0, 2, size=len(names))
        looks = [_vector(rng, MODALITIES["video"] - CLOCK, 1.0) for _ in names]
        clock_time = 0.0
        utterances = []
        for u in range(rng.integers(turns[0], turns[1] + 1)):
            who = int(rng.integers(len(names)))
            drawn = factors[int(np.searchsorted(cumulative, rng.random() * cumulative[-1]))]
            label = EMOTIONS.index(EMOTION_OF[drawn])
            if rng.random() < label_noise:
                label = (label + int(rng.integers(1, len(EMOTIONS)))) % len(EMOTIONS)
            streams, evidence, words = _perform(rng, drawn, int(loud[who]), looks[who], contrast, noise)
            kept = _present(rng, absent_rate)
            seconds = 0.4 * len(words)
            utterances.append(
                Utterance(
                    id=f"{split}{d}_utt{u}",
                    speaker=str(names[who]),
                    features={m: torch.from_numpy(x.astype(np.float32)) for m, x in streams.items() if m in kept},
                    label=label,
                    text=" ".join(words),
                    start=round(clock_time, 3),
                    end=round(clock_time + seconds, 3),
                    evidence={m: tokens for m, tokens in evidence.items() if m in kept},
                )
            )
            clock_time += seconds + float(rng.uniform(0.2, 1.0))
        dialogues.append(Dialogue(f"{split}{d}", utterances))
    return Conversations(dialogues, EMOTIONS, MODALITIES)


def oracle_accuracy(
    modalities: Sequence[str],
    *,
    speaker_context: bool = True,
    timing: bool = True,
    imbalance: float = 2.0,
    label_noise: float = 0.03,
    contrast: float = 0.0,
    absent_rate: float = 0.0,
) -> float:
    """The exact accuracy of the best possible classifier that sees these modalities without feature noise.

    Args:
        modalities: Some of text, audio and video.
        speaker_context: Whether it knows if the speaker is quiet or loud, an upper bound for models that read the whole
            dialogue; without, it sees single utterances.
        timing: Whether it relates the moments of word and voice.
        imbalance, label_noise, contrast, absent_rate: Those of the generated conversations.

    Raises:
        ValueError: Unknown or no modalities.
    """
    if not modalities or not set(modalities) <= MODALITIES.keys():
        raise ValueError(f"modalities: expected some of {', '.join(MODALITIES)}, got {', '.join(modalities) or 'none'}")
    total = 0.0
    for size in range(1, len(MODALITIES) + 1):
        for present in combinations(MODALITIES, size):
            chance = (1 - absent_rate) ** size * absent_rate ** (len(MODALITIES) - size)
            if size == 1:  # where all would be absent, one drawn uniformly is kept
                chance += absent_rate ** len(MODALITIES) / len(MODALITIES)
            seen = set(modalities) & set(present)
            total += chance * _best_accuracy(seen, speaker_context, timing, imbalance, label_noise, contrast)
    return total


def _best_accuracy(
    seen: set[str], speaker_context: bool, timing: bool, imbalance: float, label_noise: float, contrast: float
) -> float:
    joint: dict[tuple[object, ...], np.ndarray] = {}
    factors, frequencies = _factor_prior(imbalance)
    for (tone, voice, face), frequency in zip(factors, frequencies, strict=True):
        labels = np.full(len(EMOTIONS), label_noise / (len(EMOTIONS) - 1))
        labels[EMOTIONS.index(EMOTION_OF[tone, voice, face])] = 1 - label_noise
        both_tones = contrast if tone != "plain" else 0.0
        for loud, (mixed, chance) in product((0, 1), ((True, both_tones), (False, 1 - both_tones))):
            unclear = mixed and ("audio" not in seen or not timing)
            observed = (
                ("mixed" if unclear else tone) if "text" in seen else None,
                (voice if speaker_context else VOICES.index(voice) + loud) if "audio" in seen else None,
                face if "video" in seen else None,
            )
            joint[observed] = joint.get(observed, np.zeros(len(EMOTIONS))) + frequency * chance / 2 * labels
    return float(sum(labels.max() for labels in joint.values()))


def _factor_prior(imbalance: float) -> tuple[list[tuple[str, str, str]], np.ndarray]:
    """All combinations of factors and their frequencies."""
    factors = list(EMOTION_OF)
    ranks = np.array([EMOTIONS.index(EMOTION_OF[combination]) for combination in factors])
    weights = imbalance ** (-ranks / (len(EMOTIONS) - 1)) / np.bincount(ranks)[ranks]
    return factors, weights / weights.sum()


def _perform(
    rng: np.random.Generator,
    factors: tuple[str, str, str],
    loud: int,
    look: np.ndarray,
    contrast: float,
    noise: float,
) -> tuple[dict[str, np.ndarray], dict[str, list[int]], list[str]]:
    """The streams of one utterance, float64 `(L, d)`, their evidence, and the words."""
    tone, voice, face = factors
    shared = shared_vectors()
    length = {modality: int(rng.integers(3, 11)) for modality in MODALITIES}
    evidence: dict[str, list[int]] = {"text": []}

    words = [WORDS["plain"][i] for i in rng.integers(len(WORDS["plain"]), size=length["text"])]
    moment = rng.random()
    if tone != "plain":
        spoken = int(rng.integers(length["text"]))
        if rng.random() < contrast:
            # far apart, so that even in a short voice stream the clock tells which of the two is stressed
            third = length["text"] // 3
            early, late = int(rng.integers(third)), length["text"] - 1 - int(rng.integers(third))
            spoken, other = (early, late) if rng.random() < 0.5 else (late, early)
            opposite = WORDS["harsh" if tone == "kind" else "kind"]
            words[other] = opposite[rng.integers(len(opposite))]
        words[spoken] = WORDS[tone][rng.integers(len(WORDS[tone]))]
        evidence["text"] = [spoken]
        moment = (spoken + 0.5) / length["text"]
    text = np.stack([shared.words[word] for word in words])

    burst = int(moment * length["audio"])
    evidence["audio"] = [burst]
    share = np.full((length["audio"], 1), -1 / (length["audio"] - 1))
    share[burst] = 1
    audio = share * (shared.onset + (VOICES.index(voice) + loud - 1) * shared.level)

    apex = int(rng.integers(length["video"]))
    evidence["video"] = list(range(apex, min(apex + int(rng.integers(1, 3)), length["video"])))
    video = np.tile(look, (length["video"], 1))
    video[evidence["video"]] += shared.expression if face == "smile" else -shared.expression

    streams = {"text": text, "audio": audio, "video": video}
    for modality, tokens in streams.items():
        noisy = tokens + noise * rng.standard_normal(tokens.shape)
        streams[modality] = np.concatenate([noisy, _clock(len(tokens))], axis=1)
    return streams, evidence, words


def _clock(length: int) -> np.ndarray:
    time = np.pi * (np.arange(length) + 0.5) / length
    return np.stack([np.cos(time), np.sin(time), np.cos(2 * time), np.sin(2 * time)], axis=1)


def _present(rng: np.random.Generator, absent_rate: float) -> set[str]:
    kept = {modality for modality in MODALITIES if rng.random() >= absent_rate}
    return kept or {str(rng.choice(list(MODALITIES)))}


def _vector(rng: np.random.Generator, width: int, length: float) -> np.ndarray:
    vector = rng.standard_normal(width)
    return length * vector / np.linalg.norm(vector)
