"""From words to token ids, and to the features of a frozen encoder, cached on disk."""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amuse.config import DataConfig
from amuse.encoders.feature_cache import load_features, save_features
from amuse.encoders.hub import encoder_folder, import_transformers, without_progress_bars
from amuse.encoders.stored import StoredTokens
from amuse.progress import progress_bar

logger = logging.getLogger(__name__)

FILE_BYTES = 1 << 28  # of features in a cache file


class Words(NamedTuple):
    """The text of one utterance, None or empty without any."""

    speaker: str
    text: str | None


@dataclass(frozen=True)
class TokenSequence:
    """The input of the encoder for one utterance: `[CLS] older [SEP] ... current [SEP]`.

    Attributes:
        ids: Token ids, special tokens included.
        start, stop: The range of the utterance's own word pieces in `ids`.
    """

    ids: tuple[int, ...]
    start: int
    stop: int


class TextModel:
    """A transformers text model and its tokenizer, each loaded when first used, then kept.

    Args:
        encoder: See `amuse.encoders.hub.encoder_folder`.
        device: Where the model runs.

    Raises:
        ImportError, FileNotFoundError: See `encoder_folder`.
    """

    def __init__(self, encoder: str | PathLike[str] = "minilm", device: torch.device | str = "cpu") -> None:
        self.folder = encoder_folder(encoder)
        self.device = device

    @cached_property
    def tokenizer(self) -> Any:
        return import_transformers().AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def config(self) -> Any:
        return import_transformers().AutoConfig.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def network(self) -> Any:
        """The model in fp32, in evaluation mode."""
        with without_progress_bars():
            network = import_transformers().AutoModel.from_pretrained(
                self.folder, use_safetensors=True, local_files_only=True
            )
        return network.float().eval().to(self.device)


def token_sequences(
    dialogues: Sequence[Sequence[Words]],
    model: TextModel,
    *,
    context: int = 0,
    speakers: bool = False,
    max_tokens: int = 128,
    warn: bool = True,
) -> list[list[TokenSequence | None]]:
    """The encoder's input for every utterance; None for one without text, which is logged.

    Args:
        dialogues: The utterances of each dialogue, in order.
        model: Only its tokenizer is used.
        context: Number of preceding utterances of the dialogue before the utterance, each closed by `[SEP]`.
        speakers: Whether each of them begins with `"Name: "`.
        max_tokens: Longest sequence, special tokens included. The oldest context is cut first, then the end of the
            utterance itself; the log says how many were cut.
        warn: Whether to log what has no text or was cut.

    Raises:
        ValueError: A negative context or too few tokens.
    """
    if context < 0:
        raise ValueError(f"context: expected a number of utterances >= 0, got {context}")
    if max_tokens < 8:
        raise ValueError(f"max_tokens: expected at least 8, got {max_tokens}")
    tokenizer = model.tokenizer
    first = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    last = [] if tokenizer.sep_token_id is None else [tokenizer.sep_token_id]
    sequences: list[list[TokenSequence | None]] = []
    without_text = cut_context = cut_text = 0
    for dialogue in dialogues:
        sequences.append([])
        name_ids = _pieces(tokenizer, [f"{words.speaker}: " if speakers else "" for words in dialogue])
        text_ids = _pieces(tokenizer, [words.text or "" for words in dialogue])
        for position in range(len(dialogue)):
            if not text_ids[position]:
                without_text += 1
                sequences[-1].append(None)
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
            sequences[-1].append(TokenSequence(ids, start, start + len(current)))
    if not warn:
        return sequences
    total = sum(len(dialogue) for dialogue in dialogues)
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


def _longest_first(sequences: Sequence[TokenSequence]) -> list[int]:
    return sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids), reverse=True)


@dataclass(frozen=True)
class FrozenTextEncoder:
    """A pretrained encoder whose hidden states are features, cached on disk.

    The cache is keyed by a hash of the encoder's weights, the options and all token ids, so nothing stale is ever read;
    a damaged cache file is reported and rebuilt.

    Attributes:
        model: The encoder.
        layers: Hidden layers that are kept: 0 the embeddings, -1 the last layer.
        merge: Several layers become one by their `"mean"`, or are concatenated, `"concat"`.
        pool: True keeps one vector per utterance, the mean of its tokens.
        cache_dir: Folder of the cache; default `default_cache_dir()`.
        batch_size: Utterances per forward pass; utterances of similar length share one.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: An unknown merge.
    """

    model: TextModel
    layers: Sequence[int] = (-1,)
    merge: str = "mean"
    pool: bool = False
    cache_dir: str | PathLike[str] | None = None
    batch_size: int = 64
    progress: bool = True

    def __post_init__(self) -> None:
        if self.merge not in ("mean", "concat"):
            raise ValueError(f"merge: expected 'mean' or 'concat', got {self.merge!r}")

    @property
    def width(self) -> int:
        """Feature width: the encoder's (384 for MiniLM), times the number of layers with merge `"concat"`."""
        return int(self.model.config.hidden_size) * (len(self.layers) if self.merge == "concat" else 1)

    def __call__(self, sequences: Sequence[TokenSequence]) -> dict[TokenSequence, StoredTokens]:
        """Where the features of each distinct sequence are in the cache, which gets what it lacks; see `encode`.

        A cache file holds about `FILE_BYTES`, so that no more than one file's features are in memory, and a process
        that is killed loses no more than those.
        """
        found: dict[TokenSequence, StoredTokens] = {}
        for part in self._files(list(dict.fromkeys(sequences))):
            found |= self._cached(part)
        return found

    def _files(self, unique: list[TokenSequence]) -> list[list[TokenSequence]]:
        """The sequences of each cache file: whole batches of `encode`, whose results thus do not depend on the cut."""
        size = 4 * self.width
        if sum(self._kept(sequence) for sequence in unique) * size <= FILE_BYTES:
            return [unique] if unique else []
        ordered = [unique[row] for row in _longest_first(unique)]
        files: list[list[TokenSequence]] = []
        used = FILE_BYTES
        for begin in range(0, len(ordered), self.batch_size):
            batch = ordered[begin : begin + self.batch_size]
            if used >= FILE_BYTES:
                files.append([])
                used = 0
            files[-1] += batch
            used += sum(map(self._kept, batch)) * size
        return files

    def _kept(self, sequence: TokenSequence) -> int:
        return 1 if self.pool else sequence.stop - sequence.start

    def _cached(self, unique: list[TokenSequence]) -> dict[TokenSequence, StoredTokens]:
        """One cache file."""
        key = self._cache_key(unique)
        path = Path(default_cache_dir() if self.cache_dir is None else self.cache_dir) / f"text-{key[:32]}.safetensors"
        tokens = load_features(path, key, count=len(unique))
        if tokens is None:
            save_features(path, key, self.encode(unique))
            tokens = load_features(path, key, count=len(unique))
            if tokens is None:
                raise ValueError(f"{path}: was damaged while it was written")
        return dict(zip(unique, tokens, strict=True))

    @torch.inference_mode()
    def encode(self, sequences: Sequence[TokenSequence]) -> list[Tensor]:
        """float32 `(L, width)` on the CPU for the utterance's own L tokens, or 1 with `pool`; without the cache.

        Raises:
            ValueError: An unknown layer.
        """
        depth = self.model.config.num_hidden_layers + 1
        if not self.layers or any(not -depth <= layer < depth for layer in self.layers):
            got = ", ".join(map(str, self.layers)) or "none"
            raise ValueError(f"layers: expected indices from {-depth} to {depth - 1}, at least one, got {got}")
        network, device = self.model.network, self.model.device
        order = _longest_first(sequences)
        features: dict[int, Tensor] = {}
        what = f"encoding the words of {len(sequences)} utterances with {self.model.folder.name}"
        with progress_bar(what, len(sequences), "utt", shown=self.progress) as bar:
            for begin in range(0, len(order), self.batch_size):
                rows = order[begin : begin + self.batch_size]
                ids = torch.zeros(len(rows), len(sequences[rows[0]].ids), dtype=torch.int64)
                mask = torch.zeros_like(ids)
                for i, row in enumerate(rows):
                    sequence = sequences[row].ids
                    ids[i, : len(sequence)] = torch.tensor(sequence)
                    mask[i, : len(sequence)] = 1
                hidden = network(
                    input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True
                ).hidden_states
                chosen = [hidden[layer] for layer in self.layers]
                concatenated = self.merge == "concat"
                merged = (torch.cat(chosen, dim=-1) if concatenated else torch.stack(chosen).mean(dim=0)).cpu()
                for i, row in enumerate(rows):
                    tokens = merged[i, sequences[row].start : sequences[row].stop]
                    features[row] = tokens.mean(dim=0, keepdim=True) if self.pool else tokens.clone()
                bar.update(len(rows))
        return [features[row] for row in range(len(sequences))]

    def _cache_key(self, sequences: list[TokenSequence]) -> str:
        options = f"layers={tuple(self.layers)} merge={self.merge} pool={self.pool}"
        digest = hashlib.sha256(f"amuse text features 2 {options}\n".encode())
        folder = self.model.folder
        for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        for sequence in sequences:
            digest.update(f"{sequence.start} {sequence.stop} {sequence.ids}\n".encode())
        return digest.hexdigest()


class WordReader:
    """Encodes words that arrive utterance by utterance or in batches, exactly as training encodes a data set.

    Tokenizer and encoder are loaded once, and nothing is cached on disk, since live words rarely repeat.

    Args:
        config: The run's settings of the text encoder.
        device: Where a frozen encoder runs.

    Raises:
        ImportError, FileNotFoundError: See `amuse.encoders.hub.encoder_folder`.
    """

    def __init__(self, config: DataConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.model = TextModel(config.encoder, device)
        self.frozen: FrozenTextEncoder | None = None
        if config.encoder_mode == "frozen":
            self.frozen = FrozenTextEncoder(self.model, config.layers, config.merge, config.pool, progress=False)

    def newest(self, words: Sequence[Words]) -> Tensor | None:
        """The last of `words`, as `(L, width)` features or int64 `(L,)` ids; None without text.

        Args:
            words: The newest utterance after those before it, of which `config.context` are read.
        """
        sequence = self._sequences([words])[0][-1]
        return None if sequence is None else self._read([sequence])[sequence]

    def __call__(self, dialogues: Sequence[Sequence[Words]]) -> list[list[Tensor | None]]:
        """Every utterance of whole dialogues, each as `newest` returns it."""
        sequences = self._sequences(dialogues)
        read = self._read([each for dialogue in sequences for each in dialogue if each is not None])
        return [[None if each is None else read[each] for each in dialogue] for dialogue in sequences]

    def sequence(self, words: Sequence[Words]) -> TokenSequence | None:
        """The encoder's input for the last of `words`, None without text; logs nothing."""
        return self._sequences([words], warn=False)[0][-1]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text's own word pieces."""
        return _pieces(self.model.tokenizer, list(texts))

    def versions(self, sequence: TokenSequence, texts: Sequence[str]) -> list[Tensor | None]:
        """Features or ids with each of `texts` as the utterance's words; None for one without a word piece.

        What the encoder reads besides, speakers and context, stays as it is in `sequence`, and no version has more word
        pieces than that.
        """
        before, after = sequence.ids[: sequence.start], sequence.ids[sequence.stop :]
        own = [tuple(ids[: sequence.stop - sequence.start]) for ids in self.pieces(texts)]
        found = [TokenSequence((*before, *ids, *after), len(before), len(before) + len(ids)) for ids in own]
        read = self._read([each for each in found if each.stop > each.start])
        return [read.get(each) for each in found]

    def _sequences(
        self, dialogues: Sequence[Sequence[Words]], *, warn: bool = True
    ) -> list[list[TokenSequence | None]]:
        options = self.config
        return token_sequences(
            dialogues,
            self.model,
            context=options.context,
            speakers=options.speakers,
            max_tokens=options.max_tokens,
            warn=warn,
        )

    def _read(self, sequences: list[TokenSequence]) -> dict[TokenSequence, Tensor]:
        unique = list(dict.fromkeys(sequences))
        if self.frozen is None:
            return {each: torch.tensor(each.ids, dtype=torch.int64) for each in unique}
        return dict(zip(unique, self.frozen.encode(unique), strict=True))


def default_cache_dir() -> Path:
    """`$AMUSE_CACHE`, else `amuse` in the user's cache folder."""
    own = os.environ.get("AMUSE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amuse"
