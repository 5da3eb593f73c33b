"""Configuration: nested dataclasses, read from YAML, changed by `--set a.b=value`, saved with every checkpoint."""

import dataclasses
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml

from amuse.files import write_text

T = TypeVar("T")

SPLITS = ("train", "valid", "test")


@dataclass
class ModelConfig:
    """The network; its inputs and outputs follow from the data, see `amuse.data.spec.DataSpec`."""

    streams: dict[str, list[str]] = field(default_factory=dict)  # e.g. video: [face, background] make one modality
    d_model: int = 128  # width of every descriptor
    num_heads: int = 4
    unimodal_lstm: bool = True  # Bi-LSTM over the tokens of a modality (III-A)
    unimodal_layers: int = 1  # self-attention layers after it (III-A)
    man: bool = True  # False: unimodal descriptors go to the fusion directly (ablation)
    man_layers: int = 4  # layers of a Central network (III-B, Table V)
    man_gate: Literal["mean", "learned", "input"] = "mean"  # weight of a Peripheral source; "mean" in the paper
    man_normalization: Literal["per_source", "joint"] = "per_source"  # of Eq. 1; "joint": one softmax over all sources
    man_score_map: bool = False  # the linear map around the scores of Eq. 1, across heads; man_gate "mean" only
    man_lstm: bool = False  # a Bi-LSTM after the layers, as Fig. 1 draws
    head_merge: Literal["mean", "concat"] = "mean"  # how attention heads are merged; "mean" in the paper
    # "closed_form" is Eq. 6, "chain" III-E2, "equal" and "random" the paper's tests; "concat" has no coefficients
    fusion: Literal["learned", "closed_form", "chain", "equal", "random", "concat"] = "learned"
    epsilon: float = 0.2  # step of the closed form (Eq. 6)
    gate_scale: float = 1.0  # of the learned gate's initial weights; 0 starts every alpha at the equal mix, 1/2
    gate_teacher: bool = False  # the learned gate follows Eq. 6 for the true label in training; see loss.gate
    speaker_head: bool = False  # descriptors also tell speakers apart; see loss.speaker
    temporal: Literal["bilstm", "attention", "none"] = "bilstm"  # "attention": over same and any speaker
    temporal_layers: int = 1
    causal: bool = False  # no look into the future; temporal "attention" or "none" only
    context_window: int | None = None  # the last utterances that an utterance attends to, itself too; causal only
    descriptor_norm: bool = True  # layer norms of descriptors, which forget how large a feature is; off for few data
    dropout: float = 0.3
    input_dropout: float = 0.0  # on token features
    modality_dropout: dict[str, float] = field(default_factory=dict)  # chance that a training utterance loses it
    modality_swap: dict[str, float] = field(default_factory=dict)  # chance that it gets another utterance's features
    encoder_layers: int | None = None  # only the last layers of encoders are trained; None = all, with the embeddings
    backend: str | None = None  # for the kernels; None = best available

    def __post_init__(self) -> None:
        _check_choices(self)
        _positive(self, "d_model", "num_heads", "temporal_layers")
        _non_negative(self, "unimodal_layers", "man_layers", "epsilon", "gate_scale")
        _probability(self, "dropout", "input_dropout")
        for name in ("modality_dropout", "modality_swap"):
            chances = getattr(self, name)
            if not all(0 <= chance <= 1 for chance in chances.values()):
                raise ValueError(f"{name}: expected probabilities, got {chances}")
        if self.d_model % (8 * self.num_heads):
            raise ValueError(
                f"d_model: expected a multiple of 8 * num_heads = {8 * self.num_heads}, got {self.d_model}"
            )
        if self.causal and self.temporal == "bilstm":
            raise ValueError("causal: a Bi-LSTM sees the future; use temporal 'attention' or 'none'")
        if self.context_window is not None and not (self.causal and self.temporal == "attention"):
            raise ValueError("context_window: needs causal and temporal 'attention'")
        if self.context_window is not None and self.context_window < 1:
            raise ValueError(f"context_window: expected at least 1, got {self.context_window}")
        if self.man_score_map and self.man_gate != "mean":
            raise ValueError(f"man_score_map: needs man_gate 'mean', got {self.man_gate!r}")
        if self.man_score_map and self.man_normalization != "per_source":
            raise ValueError(f"man_score_map: needs man_normalization 'per_source', got {self.man_normalization!r}")
        if self.man_score_map and self.d_model > 256:
            raise ValueError(f"man_score_map: needs d_model up to 256, got {self.d_model}")
        if self.gate_teacher and self.fusion != "learned":
            raise ValueError(f"gate_teacher: needs fusion 'learned', got {self.fusion!r}")
        members = [stream for streams in self.streams.values() for stream in streams]
        if len(set(members)) < len(members) or not all(self.streams.values()):
            raise ValueError(f"streams: expected every stream once and none of them empty, got {self.streams}")

    def groups(self, streams: Iterable[str]) -> dict[str, list[str]]:
        """Modality of the model -> the data's token streams that make it, in the order of the data's `streams`.

        Raises:
            ValueError: `self.streams` names a stream that the data lack, or a modality that they have too.
        """
        streams = list(streams)
        owner = {stream: name for name, members in self.streams.items() for stream in members}
        unknown = set(owner) - set(streams)
        if unknown:
            raise ValueError(f"streams: expected names out of {', '.join(streams)}, got {sorted(unknown)[0]!r}")
        taken = set(self.streams) & (set(streams) - set(owner))
        if taken:
            raise ValueError(f"streams: {sorted(taken)[0]!r} names a modality that the data have too")
        names = dict.fromkeys(owner.get(stream, stream) for stream in streams)
        return {name: self.streams.get(name, [name]) for name in names}


@dataclass
class LossConfig:
    """Weights and options of the losses (III-E)."""

    final: float = 1.0  # weight of the loss of the final classifier
    modality: float = 1.0  # weight of the loss averaged over the modality heads (Eq. 5)
    contrastive: float = 0.1  # weight of the loss between modalities (Eq. 3)
    contrastive_kind: Literal["nce", "infonce", "none"] = "nce"  # Eq. 4, or symmetric InfoNCE
    gate: float = 1.0  # weight of the distance to Eq. 6, with model.gate_teacher
    speaker: float = 0.1  # weight of telling speakers apart, with model.speaker_head
    temperature: float = 0.1  # divides the similarities
    gamma: float = 1.0  # exponent of the focal loss (Table IV)
    class_weights: float = 0.0  # classes weighted by frequency ** -class_weights; 0 = alike, 1 = balanced
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_choices(self)
        _non_negative(self, "final", "modality", "contrastive", "gate", "speaker", "gamma", "class_weights")
        _positive(self, "temperature")
        _probability(self, "label_smoothing")


@dataclass
class DataConfig:
    """Which conversations."""

    # "tables": of one's own features; "prepared": by `amuse data prepare`
    dataset: Literal["synthetic", "meld", "mosi", "prepared", "tables"] = "synthetic"
    path: str | None = None  # folder of the data set; of prepared data also a URL that fsspec opens
    modalities: list[str] | None = None  # a choice of the data's; None = all
    features: dict[str, str] = field(default_factory=dict)  # MELD: modality -> file, "{split}" in its name
    encoder: str = "minilm"  # text encoder: "minilm" or a local transformers folder
    encoder_mode: Literal["frozen", "finetune"] = "frozen"  # cached token features, or trained with the model
    layers: list[int] = field(default_factory=lambda: [-1])  # hidden layers of a frozen encoder
    merge: Literal["mean", "concat"] = "mean"  # how several layers are merged
    pool: bool = False  # one vector per utterance, the mean of its tokens (frozen)
    context: int = 0  # previous utterances in the encoder's input
    speakers: bool = False  # speakers' names in the encoder's input
    max_tokens: int = 128
    cache_dir: str | None = None  # for frozen text features and remote shards; None = a folder of the user's cache
    shard_cache_gib: float = 8.0  # copies of remote shards that are kept
    valid_fraction: float = 0.2  # held out of training for validation: of MOSI's videos, of a fold's groups
    folds: int = 0  # grouped cross-validation in this many folds; 0 = the data's own splits
    fold: int = 0  # which fold is the test part, from 0
    groups: str = "dialogue"  # what folds never split: "dialogue", "speaker", or a column of the tables
    grouping: int = 0  # seed of the order in which groups are dealt into folds
    inner_folds: int = (
        0  # cut again what is outside the test fold, into this many folds, to choose settings; 0 = do not
    )
    inner_fold: int = 0  # which of those is the test part, from 0
    fold_splits: list[str] = field(default_factory=lambda: list(SPLITS))  # splits whose dialogues are cut into folds
    transcripts: bool = False  # MOSI: also the transcripts, read by the frozen encoder, as modality "words"
    verify: bool = False  # prepared: compare every shard with its hash, also those that were compared before
    standardize: bool = True  # every feature to mean 0 and deviation 1 on the training split, outliers cut
    num_dialogues: int = 240  # synthetic
    contrast: float = 0.0  # synthetic: share of kind or harsh utterances with a word of the other tone too
    seed: int = 0  # for synthetic conversations and splits

    def __post_init__(self) -> None:
        _check_choices(self)
        _positive(self, "max_tokens", "num_dialogues", "shard_cache_gib")
        _non_negative(self, "context", "folds", "fold", "grouping", "inner_folds", "inner_fold")
        if self.folds == 1 or self.fold >= max(self.folds, 1):
            raise ValueError(
                f"folds, fold: expected 0 or at least 2 folds and a fold below, got {self.folds}, {self.fold}"
            )
        if self.inner_folds == 1 or self.inner_fold >= max(self.inner_folds, 1) or self.inner_folds > 0 == self.folds:
            raise ValueError(
                "inner_folds, inner_fold: expected 0 or, with data.folds, at least 2 and a fold below, "
                f"got {self.inner_folds}, {self.inner_fold}"
            )
        if not self.fold_splits or not set(self.fold_splits) <= set(SPLITS):
            raise ValueError(
                f"fold_splits: expected some of {', '.join(SPLITS)}, got {', '.join(self.fold_splits) or 'none'}"
            )
        _probability(self, "valid_fraction", "contrast")
        if self.dataset != "synthetic" and self.path is None:
            raise ValueError(f"data.path: expected the folder of {self.dataset}, got None")


@dataclass
class TrainConfig:
    """Optimisation."""

    epochs: int = 30
    batch_size: int = 16  # dialogues of a step, of all processes together
    accumulate: int = 1  # parts that a process computes its share of a step in, one after the other; memory, not result
    max_utterances: int | None = None  # bound on the utterances of a batch
    max_tokens: int | None = None  # bound on the tokens of a batch, of all modalities together
    learning_rate: float = 1e-3
    encoder_learning_rate: float = 3e-5  # for the last layer of a fine-tuned encoder
    encoder_decay: float = 1.0  # factor of that rate from each layer to the one below
    weight_decay: float = 1e-2
    warmup: float = 0.1  # share of all steps with a rising learning rate; then it falls along a cosine to 0
    grad_clip: float = 1.0  # norm
    patience: int = 10  # epochs without a better validation score before training stops
    ema: float = 0.0  # decay of the weights' moving average that is validated and kept; 0 = off
    keep: Literal["best", "last"] = "best"  # the epoch of the best validation score, or the last
    mixup: float = 0.0  # Beta(mixup, mixup) of the interpolation between utterances; 0 = off
    flipped: float = 0.0  # more weight for training utterances that fusion flipped in the epoch before (III-E2)
    balance: float = 0.0  # dialogues drawn by their labels' frequency ** -balance, with replacement; 0 = each once
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # for autocast
    compile: bool = False  # torch.compile: compiles for minutes first; a model without Bi-LSTMs becomes one graph
    recompute: bool = False  # activation checkpointing: less memory, a second forward pass
    strategy: Literal["ddp", "fsdp"] = "ddp"  # for several processes
    # neighbouring dialogues that are read together, for slow stores; 0 = exact shuffling; None = 0, a shard if at a URL
    shuffle_block: int | None = None
    own_blocks: bool | None = None  # each process draws from blocks of its own; None = if data are at a URL and it can
    workers: int = 0  # processes that read and collate batches ahead of the step; 0 = a thread
    save_epochs: int = 1  # epochs between saved states, for epochs of milliseconds; the last epoch's is always saved
    save_steps: int = 0  # steps between saved states, for long epochs; 0 = after each epoch only
    seed: int = 0
    device: str = "auto"  # "auto" | "cpu" | "cuda" | ...

    def __post_init__(self) -> None:
        _check_choices(self)
        _positive(self, "epochs", "batch_size", "accumulate", "learning_rate", "encoder_learning_rate")
        _positive(self, "grad_clip", "patience", "save_epochs")
        _non_negative(self, "weight_decay", "seed", "mixup", "flipped", "balance")
        _non_negative(self, "workers", "save_steps")
        if self.shuffle_block is not None:
            _non_negative(self, "shuffle_block")
        _probability(self, "warmup", "ema")
        if self.shuffle_block and self.balance:
            raise ValueError("shuffle_block: expected 0 with balance, which draws from all dialogues")
        if self.strategy == "fsdp" and self.flipped:
            raise ValueError("flipped: reads the classifiers between steps, which strategy 'fsdp' shards; use 'ddp'")
        if self.strategy == "fsdp" and self.compile:
            raise ValueError("compile: not tried with strategy 'fsdp'; use 'ddp'")
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise ValueError("precision: fp16's loss scaling does not know shards; use bf16 with strategy 'fsdp'")


@dataclass
class Config:
    """Everything that decides a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: typing.Sequence[str] = ()) -> Self:
        """Defaults, then the YAML file, then overrides such as "train.epochs=5".

        `path` is a file, or the name of one that comes with the package: "small", "demo", "meld", ...

        In files of version 0.1, `model` also has what the data decide; it is ignored, since the data decide it again.

        Raises:
            FileNotFoundError: No such file or name.
            ValueError: A key that does not exist or a value of the wrong type, named with its place.
        """
        tree: Any = {}
        if path is not None:
            path = _config_file(Path(path))
            try:
                tree = yaml.safe_load(Path(path).read_bytes()) or {}
            except (yaml.YAMLError, RecursionError, ValueError) as error:
                raise ValueError(f"{path}: not valid YAML: {error}") from None
            if not isinstance(tree, dict):
                raise ValueError(f"{path}: expected sections such as model and train, got {type(tree).__name__}")
            tree = {section: {} if content is None else content for section, content in tree.items()}
            if isinstance(tree.get("model"), dict):
                tree["model"], _ = split_data_keys(tree["model"])
        for override in overrides:
            _override(tree, override)
        return from_dict(cls, tree)

    def save(self, path: str | Path) -> None:
        text = yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)
        write_text(text, Path(path))


def _config_file(path: Path) -> Path:
    """The file at `path`, or the package's own one of that name."""
    packaged = {file.stem: file for file in sorted((Path(__file__).parent / "configs").glob("*.yaml"))}
    if path.exists():
        return path
    if str(path) not in packaged:
        raise FileNotFoundError(f"{path}: expected a YAML file, or one of {', '.join(packaged)}; no such file")
    return packaged[str(path)]


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one "section.key=value" in nested mappings; an empty section of a YAML file counts as one without keys."""
    place, separator, text = override.partition("=")
    *parents, leaf = place.split(".")
    if not separator or not all([*parents, leaf]):
        raise ValueError(f"--set {override}: expected section.key=value")
    value = yaml_value(f"--set {override}", text)
    node = tree
    for depth, parent in enumerate(parents, 1):
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ValueError(
                f"--set {override}: expected {'.'.join(parents[:depth])} to be a section, but it was set to {node!r}"
            )
    node[leaf] = value


def yaml_value(option: str, text: str) -> Any:
    """The value after "=" of an option.

    Raises:
        ValueError: It is not YAML; the message begins with `option`.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        # without the picture of the place, which is drawn over several lines
        problem = str(getattr(error, "problem", None) or error or type(error).__name__)
        raise ValueError(f"{option}: expected a YAML value after '=', got {text!r}: {problem}") from None


def split_data_keys(model: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the model as version 0.1 wrote them: those of `ModelConfig`, and those of `DataSpec`."""
    data: dict[str, Any] = {
        key: model[key] for key in ("modalities", "label_names", "text_encoder", "raw") if key in model
    }
    return {key: value for key, value in model.items() if key not in data}, data


def from_dict(kind: type[T], tree: Any, place: str = "config") -> T:
    """A dataclass from nested dicts, every key and type checked.

    Raises:
        ValueError: A key that does not exist or a value of the wrong type, named with its place.
    """
    if not isinstance(tree, dict):
        raise ValueError(f"{place}: expected a mapping, got {type(tree).__name__} {tree!r}")
    hints = typing.get_type_hints(kind)
    unknown = set(tree) - set(hints)
    if unknown:
        raise ValueError(f"{place}: unknown key {sorted(map(str, unknown))[0]!r}; known are {', '.join(hints)}")
    values: dict[str, Any] = {}
    for key, value in tree.items():
        where = f"{place}.{key}"
        values[key] = _typed(value, hints[key], where)
    return kind(**values)


def _typed(value: Any, hint: Any, place: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, place)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:  # which value it is, the dataclass checks
        return _typed(value, type(arguments[0]), place)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _typed(value, next(a for a in arguments if a is not type(None)), place)
    if origin is list and isinstance(value, list):
        return [_typed(entry, arguments[0], f"{place}[{i}]") for i, entry in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(k): _typed(entry, arguments[1], f"{place}.{k}") for k, entry in value.items()}
    if hint is float and isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"{place}: expected {getattr(hint, '__name__', hint)}, got {type(value).__name__} {value!r}")
    return value


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name}: expected a number above 0, got {getattr(config, name)}")


def _non_negative(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name}: expected 0 or more, got {getattr(config, name)}")


def _probability(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(config, name)}")


def _check_choices(config: Any) -> None:
    """Every field of a `Literal` type has one of its values, however the configuration was made."""
    for name, hint in typing.get_type_hints(type(config)).items():
        choices, value = typing.get_args(hint), getattr(config, name)
        if typing.get_origin(hint) is Literal and value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
