"""Audio-visual events, a toy task of two modalities: do sound and picture agree?

    python -m amuse.examples.events --out RUN

Clips are generated: a tone is high or low, a ball flies high or low. The label says that both are high, both are low,
or that they disagree, which neither modality reveals alone. Sound and pictures go through the encoders of `amuse data
prepare`; a clip is a dialogue of one utterance, so there is no temporal stage.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from amuse.config import Config
from amuse.data import Conversations, Dialogue, Standardizer, Utterance
from amuse.data.load import Splits
from amuse.encoders.builtin import Hog, LogMel
from amuse.encoders.signal import SAMPLE_RATE
from amuse.evaluation.predict import evaluate
from amuse.training.train import train_on

LABEL_NAMES = ("both high", "both low", "they disagree")
DEFAULTS = ["model.temporal=none", "model.d_model=32", "model.num_heads=2", "model.man_layers=2", "model.dropout=0.1"]
DEFAULTS += ["train.learning_rate=0.003"]
SIDE, FRAMES = 64, 4


def run(
    out: Annotated[Path, typer.Option(help="Folder of the runs: both modalities, each alone.")],
    clips: Annotated[int, typer.Option(help="Training clips; half as many for validation and test.")] = 400,
    seed: int = 0,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value")] = None,
) -> None:
    """Train on generated clips with both modalities and with each alone; print the test accuracies."""
    config = Config.load(None, [*DEFAULTS, *(overrides or ())])
    train, valid, test = (events(count, seed + i) for i, count in enumerate((clips, clips // 2, clips // 2)))
    standardizer = Standardizer.fit(train)
    train, valid, test = (standardizer.apply(part) for part in (train, valid, test))
    splits = Splits(train, valid, test, standardizer)
    for names in (["audio", "video"], ["audio"], ["video"]):
        part = splits.select(names)
        model = train_on(part, config, out / "_".join(names))
        typer.echo(f"{' and '.join(names):<16} accuracy {100 * evaluate(model, part.test).to_dict()['accuracy']:.1f}")


def events(count: int, seed: int) -> Conversations:
    """`count` clips; each of the four pairs of heights is equally likely."""
    rng = np.random.default_rng(seed)
    audio, vision = LogMel(rate=10.0), Hog()
    dialogues = []
    for number in range(count):
        high_tone, high_ball = (bool(rng.integers(2)) for _ in range(2))
        label = 2 if high_tone != high_ball else 0 if high_tone else 1
        features = {"audio": audio(tone(high_tone, rng)), "video": vision(ball(high_ball, rng))}
        dialogues.append(Dialogue(f"clip{number}", [Utterance(f"clip{number}", "world", features, label)]))
    return Conversations(dialogues, LABEL_NAMES, {"audio": audio.width, "video": vision.width})


def tone(high: bool, rng: np.random.Generator) -> np.ndarray:
    """Half a second of a tone in noise: float32 `(samples,)` at 16 kHz."""
    hertz = rng.uniform(1500, 4000) if high else rng.uniform(200, 500)
    seconds = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    samples = 0.3 * np.sin(2 * np.pi * hertz * seconds) + 0.02 * rng.standard_normal(len(seconds))
    return samples.astype(np.float32)


def ball(high: bool, rng: np.random.Generator) -> list[np.ndarray]:
    """Frames of a bright ball that crosses a dark picture from left to right: uint8 `(SIDE, SIDE, 3)` each."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    y = rng.uniform(8, 24) if high else rng.uniform(SIDE - 24, SIDE - 8)
    frames = []
    for x in np.linspace(10, SIDE - 10, FRAMES):
        picture = rng.integers(0, 30, (SIDE, SIDE, 3))
        picture[(rows - y) ** 2 + (columns - x) ** 2 < 49] += 200
        frames.append(picture.astype(np.uint8))
    return frames


if __name__ == "__main__":
    typer.run(run)
