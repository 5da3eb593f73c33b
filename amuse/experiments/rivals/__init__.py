"""Published ways to fuse modalities, on AMuSE's encoders and contexts, trained and tuned as AMuSE is.

A rival replaces the Multimodal Attention Network and adaptive fusion; the unimodal stage, the temporal stage, the
heads and the losses are AMuSE's, so that a difference is the fusion's.
"""

from amuse.experiments.rivals.contextual import ContextualLSTM
from amuse.experiments.rivals.crossmodal import CrossmodalTransformer
from amuse.experiments.rivals.dialogue_rnn import DialogueRNN
from amuse.experiments.rivals.early import EarlyFusion
from amuse.experiments.rivals.late import LateFusion
from amuse.experiments.rivals.low_rank import LowRankFusion
from amuse.experiments.rivals.tensor import TensorFusion
from amuse.model.amuse import Amuse

RIVALS: dict[str, type[Amuse]] = {
    "early fusion": EarlyFusion,
    "late fusion": LateFusion,
    "tensor fusion": TensorFusion,
    "low-rank fusion": LowRankFusion,
    "MulT": CrossmodalTransformer,
    "contextual LSTM": ContextualLSTM,
    "DialogueRNN": DialogueRNN,
}
"""Name -> model, built with the arguments of `Amuse`."""

__all__ = ["RIVALS"]
