"""DialogueRNN (Majumder et al., "DialogueRNN: an attentive RNN for emotion detection in conversations", AAAI 2019)."""

from typing import Any

import torch
from torch import Tensor, nn

from amuse.data.batch import Batch
from amuse.experiments.rivals.rival import Rival


class DialogueRNN(Rival):
    """The concatenated descriptors enter recurrent states of the dialogue and of each speaker, both directions."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        d = self.config.d_model
        self.temporal = Conversation(len(self.modalities) * d, d, self.config.dropout)  # type: ignore[assignment]
        self.classifier = nn.Linear(2 * d, self.spec.num_outputs)


class Conversation(nn.Module):
    """`SpeakerStates` from the first utterance to the last and back; `(U, width)` to `(U, 2 d)`."""

    def __init__(self, width: int, d: int, dropout: float) -> None:
        super().__init__()
        self.width = 2 * d
        self.forwards, self.backwards = SpeakerStates(width, d), SpeakerStates(width, d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        states = []
        begin = 0
        for length in batch.dialogues.lengths.tolist():
            own, speaker = x[begin : begin + length], batch.speaker[begin : begin + length]
            there = self.forwards(own, speaker)
            back = self.backwards(own.flip(0), speaker.flip(0)).flip(0)
            states.append(torch.cat([there, back], dim=1))
            begin += length
        return self.dropout(torch.cat(states))


class SpeakerStates(nn.Module):
    """Global, party and emotion GRUs with attention over the global states before; one dialogue, one direction.

    Listeners keep their states (the paper's simplest variant).
    """

    def __init__(self, width: int, d: int) -> None:
        super().__init__()
        self.world = nn.GRUCell(width + d, d)
        self.party = nn.GRUCell(width + d, d)
        self.emotion = nn.GRUCell(d, d)
        self.score = nn.Linear(width, d, bias=False)

    def forward(self, x: Tensor, speaker: Tensor) -> Tensor:
        """`(N, width)` utterances and their speakers `(N,)`, to emotion states `(N, d)`."""
        d = self.emotion.hidden_size
        nothing = x.new_zeros(1, d)
        world, emotion = nothing, nothing
        parties: dict[int, Tensor] = {}
        history: list[Tensor] = []
        states = []
        for utterance, who in zip(x.unbind(), speaker.tolist(), strict=True):
            u, party = utterance[None], parties.get(who, nothing)
            context = nothing
            if history:
                past = torch.cat(history)
                context = (self.score(u) @ past.T).softmax(-1) @ past
            world = self.world(torch.cat([u, party], dim=1), world)
            history.append(world)
            parties[who] = self.party(torch.cat([u, context], dim=1), party)
            emotion = self.emotion(parties[who], emotion)
            states.append(emotion)
        return torch.cat(states)
