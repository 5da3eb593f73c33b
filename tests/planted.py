"""Conversations in which one known token of one known modality decides, and a model that has learnt them."""

import torch

from amuse.config import Config
from amuse.data import Conversations, Dialogue, Utterance
from amuse.data.load import Splits
from amuse.training.train import train_on

WIDTHS = {"text": 8, "audio": 6, "video": 7}
EMOTIONS = ["neutral", "joy", "anger"]
WORDS = ["well", "so", "then", "the", "train", "maybe", "door", "coffee", "table"]


def planted_conversations(num_dialogues: int, seed: int) -> Conversations:
    """A burst of one token in one stream makes an utterance joyful or angry, and `evidence` names it; else neutral."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    def utterance(dialogue: int, position: int) -> Utterance:
        features = {m: torch.randn(4 + draw(5), width, generator=generator) for m, width in WIDTHS.items()}
        words = [WORDS[draw(len(WORDS))] for _ in features["text"]]
        label, evidence = draw(3), {}
        if label:
            stream = list(WIDTHS)[draw(3)]
            token = draw(len(features[stream]))
            features[stream][token, :4] = 3.0 * torch.tensor([1.0, 1.0, 1 - 2 * (label - 1), 2 * (label - 1) - 1])
            evidence = {stream: [token]}
            if stream == "text":
                words[token] = ("wonderful", "awful")[label - 1]
        return Utterance(
            f"d{dialogue}_u{position}",
            ("Ann", "Bob")[draw(2)],
            features,
            label,
            " ".join(words),
            2.0 * position,
            2.0 * position + 1.5,
            evidence,
        )

    dialogues = [Dialogue(f"d{d}", [utterance(d, p) for p in range(3 + draw(4))]) for d in range(num_dialogues)]
    return Conversations(dialogues, EMOTIONS, WIDTHS)


def train_planted(folder, **options):
    """A small model of the planted conversations, seconds of training."""
    splits = Splits(
        planted_conversations(100, 1), planted_conversations(10, 2), planted_conversations(40, 3), standardizer=None
    )
    changes = {"model.d_model": 16, "model.num_heads": 2, "model.man_layers": 2, "train.epochs": 12} | options
    changes |= {"train.learning_rate": 0.01, "train.batch_size": 8, "model.dropout": 0.05}
    config = Config.load(None, [f"{key}={value}" for key, value in changes.items()])
    return train_on(splits, config, folder, progress=False), splits.test
