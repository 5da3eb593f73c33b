"""AMuSE: emotions in conversations, from text, voice and picture (arXiv 2401.15164).

What a script needs, imported when it is first used:

    config = amuse.Config.load("configs/meld.yaml", ["train.epochs=5"])
    model = amuse.train(config, "run")                         # or amuse.train_on(splits, config, folder)
    model, conversations, config = amuse.load_run("run", "test")
    rows = amuse.predict_recording("run", "talk.mp4")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amuse.config import Config
    from amuse.data.conversation import Conversations, Dialogue, Utterance
    from amuse.data.load import Splits, load_splits
    from amuse.evaluation.load import load_best, load_run
    from amuse.evaluation.predict import evaluate, predict
    from amuse.inference.prediction import predict_recording
    from amuse.inference.streaming import StreamingSession
    from amuse.model.amuse import Amuse
    from amuse.training.train import train, train_on
    from amuse_kernels import __version__ as __version__

_HOMES = {
    "Amuse": "amuse.model.amuse",
    "Config": "amuse.config",
    "Conversations": "amuse.data.conversation",
    "Dialogue": "amuse.data.conversation",
    "Splits": "amuse.data.load",
    "StreamingSession": "amuse.inference.streaming",
    "Utterance": "amuse.data.conversation",
    "__version__": "amuse_kernels",  # which imports torch
    "evaluate": "amuse.evaluation.predict",
    "load_best": "amuse.evaluation.load",
    "load_run": "amuse.evaluation.load",
    "load_splits": "amuse.data.load",
    "predict": "amuse.evaluation.predict",
    "predict_recording": "amuse.inference.prediction",
    "train": "amuse.training.train",
    "train_on": "amuse.training.train",
}

__all__ = [
    "Amuse",
    "Config",
    "Conversations",
    "Dialogue",
    "Splits",
    "StreamingSession",
    "Utterance",
    "evaluate",
    "load_best",
    "load_run",
    "load_splits",
    "predict",
    "predict_recording",
    "train",
    "train_on",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'amuse' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
