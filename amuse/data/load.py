"""The splits that a configuration asks for, with text features attached and features standardised."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from amuse.config import SPLITS, DataConfig, from_dict
from amuse.data.conversation import TOKEN_IDS, Conversations, Dialogue
from amuse.data.folder import has_recordings
from amuse.data.folds import Fold, columns_of, cut_fold, cut_inner_fold, groups_of
from amuse.data.meld import read_meld
from amuse.data.mosi import read_mosi
from amuse.data.preflight import check_scorable
from amuse.data.prepared import INDEX_FILE, default_cache, read_manifest, read_prepared
from amuse.data.spec import DataSpec
from amuse.data.standardize import Standardizer
from amuse.data.synthetic import synthetic_conversations
from amuse.data.tables import UTTERANCES_FILE, read_tables
from amuse.data.text import encode_text, tokenize
from amuse.encoders.signal import RawStream
from amuse.encoders.words import TextOptions
from amuse.remote import is_url
from amuse.world import World

logger = logging.getLogger(__name__)


@dataclass
class Splits:
    """The splits, and, where there is one, the standardizer fitted on `train` and the manifest of prepared data.

    `raw`: the streams that an encoder of the model has to read, see `DataSpec`.
    """

    train: Conversations
    valid: Conversations
    test: Conversations
    standardizer: Standardizer | None
    media: dict[str, Any] | None = None
    raw: dict[str, RawStream] = field(default_factory=dict)

    def spec(self, text_encoder: str) -> DataSpec:
        """The inputs and outputs of a model of these data; `text_encoder` is for token ids, if there are any."""
        modalities = dict(self.train.modalities)
        encoder = text_encoder if TOKEN_IDS in modalities.values() else None
        return DataSpec(modalities, self.train.label_names, encoder, dict(self.raw))

    def select(self, modalities: Sequence[str]) -> "Splits":
        """The same dialogues with these modalities only, without standardizer and manifest."""
        train, valid, test = (part.select(modalities) for part in (self.train, self.valid, self.test))
        return Splits(train, valid, test, None, raw={m: self.raw[m] for m in modalities if m in self.raw})


def load_splits(config: DataConfig, progress: bool = True, device: torch.device | str = "cpu") -> Splits:
    """All three splits of a data set; a frozen text encoder runs on `device`.

    Raises:
        FileNotFoundError, ValueError: Naming the file and what is wrong with it.
    """
    return standardize_splits(config, read_splits(config, progress, device))


def standardize_splits(config: DataConfig, splits: Splits, world: World | None = None) -> Splits:
    """The splits as `config` says, with moments that the main process of `world` computes from the training split."""
    if not config.standardize:
        return splits
    standardizer: Standardizer | None = None
    if world is None or world.is_main:
        # token ids, and raw streams that their encoder's processor has scaled, stay as they are
        fitted = [m for m, width in splits.train.modalities.items() if width != TOKEN_IDS and m not in splits.raw]
        standardizer = Standardizer.fit(splits.train, modalities=fitted)
    if world is not None:
        standardizer = world.share(standardizer)
    assert standardizer is not None
    train, valid, test = (standardizer.apply(part) for part in (splits.train, splits.valid, splits.test))
    return replace(splits, train=train, valid=valid, test=test, standardizer=standardizer)


def read_splits(config: DataConfig, progress: bool = True, device: torch.device | str = "cpu") -> Splits:
    """`load_splits` before features are standardised.

    Raises:
        FileNotFoundError, ValueError: Naming the file and what is wrong with it.
    """
    if config.folds:
        train, valid, test = load_fold(config, progress, device)
    else:
        parts = {split: _read_split(config, split) for split in SPLITS}
        check_scorable(parts)  # before minutes go into the words
        parts = _with_words(config, parts, progress, device)
        train, valid, test = (_chosen(config, part) for part in parts.values())
    media = read_manifest(_prepared(config)) if config.dataset == "prepared" else None
    encoders = {} if media is None else {m: e for m, e in media["encoders"].items() if m in train.modalities}
    raw = {m: from_dict(RawStream, e["raw"], f"{m}.raw") for m, e in encoders.items() if "raw" in e}
    return Splits(train, valid, test, None, media, raw)


def load_split(
    config: DataConfig, split: str, progress: bool = True, device: torch.device | str = "cpu"
) -> Conversations:
    """One split, "train", "valid" or "test", not standardised; a frozen text encoder runs on `device`.

    Raises:
        FileNotFoundError, ValueError: Naming the file and what is wrong with it.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if config.folds:
        return load_fold(config, progress, device)[SPLITS.index(split)]
    return _chosen(config, _with_words(config, {split: _read_split(config, split)}, progress, device)[split])


def load_fold(
    config: DataConfig, progress: bool = True, device: torch.device | str = "cpu"
) -> tuple[Conversations, Conversations, Conversations]:
    """Training, validation and test parts of one fold, not standardised.

    Raises:
        FileNotFoundError, ValueError: As for `load_split`, and if the groups cannot be divided into folds.
    """
    if config.dataset == "tables":
        tables = read_tables(_folder(config), config.modalities)
        chosen = set(config.fold_splits)
        columns = {
            column: {name: found for name, found in values.items() if tables.splits[name] in {*chosen, ""}}
            for column, values in tables.columns.items()
        }
        fold = _cut(config, groups_of(columns, config.groups))
        parts = [tables.conversations(ids, fold.train) for ids in (fold.train, fold.valid, fold.test)]
    else:
        splits = {split: _read_split(config, split) for split in config.fold_splits}
        pool = _pooled(_with_words(config, splits, progress, device))
        fold = _cut(config, groups_of(columns_of(pool), config.groups))
        index = {dialogue.id: i for i, dialogue in enumerate(pool.dialogues)}
        parts = [pool.subset([index[name] for name in ids]) for ids in (fold.train, fold.valid, fold.test)]
    train, valid, test = (_chosen(config, part) for part in parts)
    return train, valid, test


def _cut(config: DataConfig, groups: dict[str, str]) -> Fold:
    outer = cut_fold(groups, config.folds, config.fold, config.grouping, config.valid_fraction)
    if not config.inner_folds:
        return outer
    inner = config.inner_folds, config.inner_fold, config.grouping, config.valid_fraction
    return cut_inner_fold(groups, outer, *inner)


def _chosen(config: DataConfig, conversations: Conversations) -> Conversations:
    return conversations if config.modalities is None else conversations.select(config.modalities)


def _pooled(splits: dict[str, Conversations]) -> Conversations:
    """The dialogues of several splits; ids, which may repeat between splits, are prefixed with the split's name."""
    if len(splits) == 1:
        return next(iter(splits.values()))
    dialogues = [
        Dialogue(f"{split}/{dialogue.id}", [replace(u, id=f"{split}/{u.id}") for u in dialogue.utterances])
        for split, conversations in splits.items()
        for dialogue in conversations.dialogues
    ]
    first = next(iter(splits.values()))
    return Conversations(dialogues, first.label_names, first.modalities)


def _read_split(config: DataConfig, split: str) -> Conversations:
    """A split as the data set defines it, its words not encoded yet."""
    if config.dataset == "synthetic":
        # validation and test are half as long as training
        count = config.num_dialogues if split == "train" else max(config.num_dialogues // 2, 1)
        return synthetic_conversations(split, num_dialogues=count, seed=config.seed, contrast=config.contrast)
    if config.dataset == "mosi":
        return read_mosi(_folder(config), split, valid_fraction=config.valid_fraction, seed=config.seed)
    if config.dataset == "tables":
        return read_tables(_folder(config), config.modalities).split(split)
    if config.dataset == "prepared":
        cache = default_cache(config.cache_dir, config.shard_cache_gib)
        return read_prepared(_prepared(config), split, verify=config.verify, cache=cache)
    return read_meld(_folder(config), "dev" if split == "valid" else split, features=config.features)


def _with_words(
    config: DataConfig, splits: dict[str, Conversations], progress: bool, device: torch.device | str
) -> dict[str, Conversations]:
    """All splits of one read, so that it is decided, and logged, once whether their words are encoded."""
    modality = words_modality(config)
    if modality is None:
        return splits
    if config.dataset == "prepared":
        manifest = read_manifest(_prepared(config))
        wanted = "text" in (config.modalities or ["text"])
        if not (wanted and manifest["text"]) or has_words(config, manifest):
            return splits
    return {split: add_text(config, part, progress, modality, device) for split, part in splits.items()}


def guess_dataset(folder: str | PathLike[str]) -> str:
    """The data set whose files are in a folder; "prepared" for a URL, the only one that is read from there.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: No file of prepared data, tables, MELD or CMU-MOSI is there.
    """
    if is_url(folder):
        return "prepared"
    folder = Path(folder)
    marks = {"prepared": INDEX_FILE, "tables": UTTERANCES_FILE, "meld": "train_sent_emo.csv", "mosi": "transcripts.csv"}
    for dataset, mark in marks.items():
        if (folder / mark).is_file():
            return dataset
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of data, no such folder")
    expected = " or ".join(f"{mark} ({dataset})" for dataset, mark in marks.items())
    recordings = has_recordings(folder)
    hint = f"; to make features of its recordings: amuse data prepare {folder} --out DATA" if recordings else ""
    raise ValueError(f"{folder}: expected {expected} in this folder, found none of them{hint}")


def _folder(config: DataConfig) -> Path:
    assert config.path is not None  # DataConfig has checked it
    if is_url(config.path):
        raise ValueError(f"data.path: expected a folder for the data set {config.dataset!r}, got the URL {config.path}")
    return Path(config.path).expanduser()


def _prepared(config: DataConfig) -> str | Path:
    """The folder or URL of prepared data."""
    return config.path if config.path is not None and is_url(config.path) else _folder(config)


def has_words(config: DataConfig, manifest: dict[str, Any]) -> bool:
    """Whether prepared data have the features that the configuration's frozen text encoder would give.

    Those of another encoder or other options are not used, which is logged.
    """
    differences = TextOptions.of(config).differences(manifest)
    if differences is None or config.encoder_mode != "frozen":
        return False
    for name, (there, here) in differences.items():
        message = "the words are encoded again: the prepared data have them with %s = %r, the configuration says %r"
        logger.warning(message, name, there, here)
    return not differences


def words_modality(config: DataConfig) -> str | None:
    """The modality that a text encoder makes from the words, "text" or CMU-MOSI's "words"; None without any."""
    if config.dataset == "mosi":
        return "words" if config.transcripts else None
    return "text" if config.dataset in ("meld", "prepared") else None


def add_text(
    config: DataConfig,
    conversations: Conversations,
    progress: bool = True,
    modality: str = "text",
    device: torch.device | str = "cpu",
) -> Conversations:
    """The conversations with their words as a modality, as `config` says: token ids, or features made on `device`."""
    if config.encoder_mode == "finetune":
        return tokenize(
            conversations,
            config.encoder,
            modality=modality,
            context=config.context,
            speakers=config.speakers,
            max_tokens=config.max_tokens,
        )
    return encode_text(
        conversations,
        config.encoder,
        modality=modality,
        cache_dir=config.cache_dir,
        layers=config.layers,
        merge=config.merge,
        pool=config.pool,
        context=config.context,
        speakers=config.speakers,
        max_tokens=config.max_tokens,
        device=device,
        progress=progress,
    )
