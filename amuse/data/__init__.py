"""Conversations, their batches, readers of data sets, generated conversations and text features."""

from amuse.data.batch import UNLABELLED, Batch, ConversationLoader, collate, make_loader
from amuse.data.conversation import TOKEN_IDS, Conversations, Dialogue, Utterance
from amuse.data.meld import read_meld
from amuse.data.mosi import read_mosi
from amuse.data.standardize import Standardizer
from amuse.data.synthetic import oracle_accuracy, synthetic_conversations
from amuse.data.text import encode_text, tokenize
from amuse.encoders.hub import encoder_folder

__all__ = [
    "TOKEN_IDS",
    "UNLABELLED",
    "Batch",
    "ConversationLoader",
    "Conversations",
    "Dialogue",
    "Standardizer",
    "Utterance",
    "collate",
    "encode_text",
    "encoder_folder",
    "make_loader",
    "oracle_accuracy",
    "read_meld",
    "read_mosi",
    "synthetic_conversations",
    "tokenize",
]
