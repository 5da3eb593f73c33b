"""Attaches the words of conversations as a modality: token ids, or features of a frozen encoder."""

from collections.abc import Sequence
from os import PathLike

import torch

from amuse.data.conversation import TOKEN_IDS, Conversations
from amuse.encoders.text import FrozenTextEncoder, TextModel, TokenSequence, Words, token_sequences


def tokenize(
    conversations: Conversations,
    encoder: str | PathLike[str] = "minilm",
    *,
    modality: str = "text",
    context: int = 0,
    speakers: bool = False,
    max_tokens: int = 128,
) -> Conversations:
    """Puts token ids into `features[modality]`, for an encoder that is trained with the model.

    Args:
        conversations: With texts; an utterance whose text is None or empty gets no text modality, which is logged.
        modality: Its name.
        encoder: See `amuse.encoders.hub.encoder_folder`; only its tokenizer is used.
        context, speakers, max_tokens: See `amuse.encoders.text.token_sequences`.

    Returns:
        The same conversations with `modality` as int64 `(L,)`, special tokens included; padded with id 0 by `collate`.

    Raises:
        ImportError, FileNotFoundError: See `amuse.encoders.hub.encoder_folder`.
        ValueError: See `amuse.encoders.text.token_sequences`.
    """
    sequences = utterance_sequences(conversations, TextModel(encoder), context, speakers, max_tokens)
    ids = {name: torch.tensor(sequence.ids, dtype=torch.int64) for name, sequence in sequences.items()}
    return conversations.with_features(modality, TOKEN_IDS, ids)


def encode_text(
    conversations: Conversations,
    encoder: str | PathLike[str] = "minilm",
    *,
    modality: str = "text",
    cache_dir: str | PathLike[str] | None = None,
    layers: Sequence[int] = (-1,),
    merge: str = "mean",
    pool: bool = False,
    context: int = 0,
    speakers: bool = False,
    max_tokens: int = 128,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Conversations:
    """Puts the token embeddings of a frozen encoder into `features[modality]`, cached on disk.

    Args:
        conversations: With texts; an utterance whose text is None or empty gets no text modality, which is logged.
        modality: Its name.
        encoder, device: See `amuse.encoders.text.TextModel`.
        context, speakers, max_tokens: See `amuse.encoders.text.token_sequences`. Tokens of the context and of the
            speaker's name are read by the encoder, but their embeddings are not kept.
        cache_dir, layers, merge, pool, batch_size, progress: See `amuse.encoders.text.FrozenTextEncoder`.

    Returns:
        The same conversations with `modality` as float32 `(L, width)`: L tokens, or 1 with `pool`.

    Raises:
        ImportError, FileNotFoundError: See `amuse.encoders.hub.encoder_folder`.
        ValueError: An unknown layer or merge, a negative context or too few tokens.
    """
    model = TextModel(encoder, device)
    frozen = FrozenTextEncoder(model, layers, merge, pool, cache_dir, batch_size, progress)
    sequences = utterance_sequences(conversations, model, context, speakers, max_tokens)
    tokens = frozen(list(sequences.values()))
    features = {name: tokens[sequence] for name, sequence in sequences.items()}
    return conversations.with_features(modality, frozen.width, features)


def utterance_sequences(
    conversations: Conversations, model: TextModel, context: int, speakers: bool, max_tokens: int
) -> dict[str, TokenSequence]:
    """Utterance id -> the encoder's input, for utterances with text; see `amuse.encoders.text.token_sequences`.

    Raises:
        ValueError: A negative context or too few tokens.
    """
    dialogues = [[Words(u.speaker, u.text) for u in dialogue.utterances] for dialogue in conversations.dialogues]
    found = token_sequences(dialogues, model, context=context, speakers=speakers, max_tokens=max_tokens)
    every = (sequence for dialogue in found for sequence in dialogue)
    named = zip(conversations.utterances(), every, strict=True)
    return {utterance.id: sequence for utterance, sequence in named if sequence is not None}
