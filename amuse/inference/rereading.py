"""Real time for models whose context also looks ahead: each prediction is that of the utterances so far."""

import torch
from torch import Tensor

from amuse.config import DataConfig
from amuse.data.batch import Batch
from amuse.data.conversation import Utterance
from amuse.data.standardize import Standardizer
from amuse.inference.outcome import Prediction
from amuse.inference.streaming import StreamingSession, looks_ahead
from amuse.model.amuse import Amuse

MOST_UTTERANCES = 1000
"""Utterances kept per conversation; earlier ones are forgotten, so that memory and time are bounded."""


class RereadingSession(StreamingSession):
    """One conversation, utterance by utterance, by a model that reads a conversation in both directions.

    A pushed utterance gets the prediction that it has at the end of a batch of the utterances so far: what comes later
    might change it. Of each utterance the fused descriptor is kept, so that only the temporal stage runs again.
    """

    needs_causal = False

    def reset(self) -> None:
        super().reset()
        self._descriptors: list[Tensor] = []
        self._who: list[int] = []

    @torch.inference_mode()
    def push(self, utterance: Utterance) -> Prediction:
        """As `StreamingSession.push`."""
        self._descriptors = [*self._descriptors, self._fused(utterance)][-MOST_UTTERANCES:]
        self._who = [*self._who, self._speaker(utterance)][-MOST_UTTERANCES:]
        batch = Batch.of({}, {}, [len(self._who)], torch.tensor(self._who)).to(self.device)
        return self._prediction(self.model.temporal(torch.cat(self._descriptors), batch)[-1:])


def open_session(
    model: Amuse, standardizer: Standardizer | None, temperature: float, text: DataConfig | None
) -> StreamingSession:
    """The session that fits the model; arguments as for `StreamingSession`.

    Raises:
        ValueError: A model with random coefficients.
    """
    kind = RereadingSession if looks_ahead(model) else StreamingSession
    return kind(model, standardizer, temperature, text)
