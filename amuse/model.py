"""AMuSE (arXiv 2401.15164): from token features of every modality to an emotion for every utterance of a dialogue.

Sizes: U utterances of all dialogues of a batch, M modalities, L tokens of a stream, d = d_model, C classes. The parts
stand in the order in which data flow: unimodal stage (III-A), Multimodal Attention Network (III-B), adaptive fusion
(III-C), temporal stage (III-D), classifier.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amuse.config import ModelConfig, from_dict
from amuse.data.batch import Batch
from amuse.data.conversation import TOKEN_IDS
from amuse.encoder import TextEncoder
from amuse.files import load_tensors, save_tensors, write_text
from amuse.losses import focal_logit_gradient
from amuse_kernels import adaptive_fusion, interpolation_coefficients
from amuse_kernels.nn import AdaptiveFusion, PeripheralCentralAttention

MODEL_CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass
class Output:
    """What the model says about U utterances.

    Attributes:
        logits: `(U, C)`, or `(U, 1)` for regression.
        modality_logits: `(U, M, C)`, of each modality's Central network; meaningless where absent.
        descriptors: `(U, M, d)`, the cross-attended descriptors f_m^CA; 0 where absent.
        alpha: `(U, M, M)` or element-wise `(U, M, M, d)` interpolation coefficients; None with fusion "concat" and
            "chain".
        present: bool `(U, M)`, which modalities took part.
    """

    logits: Tensor
    modality_logits: Tensor
    descriptors: Tensor
    alpha: Tensor | None
    present: Tensor


class Amuse(nn.Module):
    """The model of SPEC section 4.

    Args:
        config: With `modalities` and `label_names` filled in.
        text_encoder_config: Architecture of a fine-tuned text encoder; None reads it and its pretrained weights from
            `config.text_encoder`. Only for models with token ids.

    Raises:
        ValueError: No modality, or token ids without a text encoder.
    """

    def __init__(self, config: ModelConfig, text_encoder_config: dict[str, Any] | None = None) -> None:
        super().__init__()
        if not config.modalities:
            raise ValueError("config.modalities: expected at least one modality, got none")
        self.config = config
        self.modalities = list(config.modalities)
        d, count = config.d_model, len(self.modalities)
        widths = dict(config.modalities)

        self.encoders = nn.ModuleDict()
        for name, width in config.modalities.items():
            if width == TOKEN_IDS:
                if config.text_encoder is None:
                    raise ValueError(f"config.text_encoder: modality {name!r} has token ids and needs an encoder")
                encoder = (
                    TextEncoder.from_pretrained(config.text_encoder, config.encoder_layers)
                    if text_encoder_config is None
                    else TextEncoder(text_encoder_config, config.encoder_layers)
                )
                self.encoders[name] = encoder
                widths[name] = encoder.width
        self.unimodal = nn.ModuleList(UnimodalStage(widths[name], config) for name in self.modalities)
        self.central = nn.ModuleList(CentralNetwork(count - 1, config) for _ in self.modalities) if config.man else None
        self.heads = nn.ModuleList(nn.Linear(d, config.num_outputs) for _ in self.modalities)
        self.fusion = AdaptiveFusion(d, count, config.backend) if config.fusion == "learned" else None
        fused_width = d if config.fusion == "chain" else count * d
        self.temporal = TemporalStage(fused_width, config)
        self.classifier = nn.Linear(self.temporal.width, config.num_outputs)

    def forward(self, batch: Batch) -> Output:
        """Predict every utterance of the batch; labels are not looked at."""
        if self.training and self.config.modality_swap:
            batch = _swap_modalities(batch, self.config.modality_swap)
        present = torch.stack([batch.masks[name].any(-1) for name in self.modalities], dim=-1)  # (U, M)
        if self.training and self.config.modality_dropout:
            chances = [self.config.modality_dropout.get(name, 0.0) for name in self.modalities]
            present = _drop_modalities(present, chances)
        masks = [batch.masks[name] & present[:, m, None] for m, name in enumerate(self.modalities)]

        tokens = []
        for name, stage, mask in zip(self.modalities, self.unimodal, masks, strict=True):
            features = batch.features[name]
            if name in self.encoders:
                features = self.encoders[name](features, mask)
            tokens.append(stage(features.masked_fill(~mask[..., None], 0.0), mask))  # (U, L_m, d)

        if self.central is not None:
            states = []
            for m, central in enumerate(self.central):
                others = [n for n in range(len(tokens)) if n != m]
                peripherals = [tokens[n] for n in others], [masks[n] for n in others]
                states.append(central(tokens[m], masks[m], *peripherals))
        else:
            states = tokens
        pooled = [average(state, mask) for state, mask in zip(states, masks, strict=True)]
        descriptors = torch.stack(pooled, dim=1)  # (U, M, d)
        modality_logits = torch.stack([head(f) for head, f in zip(self.heads, pooled, strict=True)], dim=1)

        fused, alpha = self._fuse(descriptors, present)
        context = self.temporal(fused, batch)
        return Output(self.classifier(context), modality_logits, descriptors, alpha, present)

    def _fuse(self, descriptors: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        """A(u) of Eq. 2, `(U, M * d)` (chain: `(U, d)`), and the coefficients."""
        kind = self.config.fusion
        if kind == "concat":
            return descriptors.flatten(1), None
        if kind == "chain":
            return self._chain(descriptors, present), None
        if self.fusion is not None:
            fused, alpha = self.fusion(descriptors, present=present)
        else:
            given = self._given_alpha(descriptors)
            fused, alpha = adaptive_fusion(descriptors, given, present=present, backend=self.config.backend)
        return fused.flatten(1), alpha

    def _given_alpha(self, descriptors: Tensor) -> Tensor:
        utterances, count, _ = descriptors.shape
        if self.config.fusion == "equal":
            return descriptors.new_full((utterances, count, count), 0.5)
        if self.config.fusion == "random":
            return torch.rand(utterances, count, count, device=descriptors.device, dtype=descriptors.dtype)
        # closed form: alpha[m, n] pulls f_m towards f_n, against the loss of modality m
        f = descriptors.detach()
        gradients = torch.stack([self._loss_gradient(m, f[:, m]) for m in range(count)], dim=1)
        shape = (utterances, count, count, f.shape[-1])
        f_m, f_n, grad_m = (x.expand(shape) for x in (f[:, :, None], f[:, None], gradients[:, :, None]))
        return interpolation_coefficients(f_n, f_m, grad_m, self.config.epsilon, backend=self.config.backend)

    def _chain(self, descriptors: Tensor, present: Tensor) -> Tensor:
        """u_1 = f_1, u_k = a_k u_(k-1) + (1 - a_k) f_k over the present modalities, a_k in closed form (III-E2)."""
        mixed, started = descriptors[:, 0], present[:, :1]
        for m in range(1, descriptors.shape[1]):
            f, here = descriptors[:, m], present[:, m, None]
            gradient = self._loss_gradient(m, f.detach())
            alpha = interpolation_coefficients(
                mixed.detach(), f.detach(), gradient, self.config.epsilon, backend=self.config.backend
            )
            step = torch.where(started, alpha * mixed + (1 - alpha) * f, f)
            mixed, started = torch.where(here, step, mixed), started | here
        return mixed

    def _loss_gradient(self, m: int, descriptor: Tensor) -> Tensor:
        """Gradient of modality m's own focal loss at its descriptor, for the label that the modality itself predicts.

        The true label would leak at inference (Eq. 6 as printed).
        """
        head = cast(nn.Linear, self.heads[m])
        logits = head(descriptor).float()
        gradient = focal_logit_gradient(logits, logits.argmax(-1)) @ head.weight.float()
        return gradient.detach().to(descriptor.dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, each at once or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        encoders = [encoder.config for encoder in self.encoders.values()]
        tree = {"model": asdict(self.config), "text_encoder_config": encoders[0] if encoders else None}
        save_tensors(self.state_dict(), folder / WEIGHTS_FILE)
        write_text(json.dumps(tree, indent=2), folder / MODEL_CONFIG_FILE)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The model that `save_pretrained` wrote.

        Raises:
            FileNotFoundError: No such folder or file.
            ValueError: A truncated or foreign file, or weights that do not fit. Pickled weights are never read.
        """
        folder = Path(folder)
        for name in (MODEL_CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder}: expected {MODEL_CONFIG_FILE} and {WEIGHTS_FILE}, {name} is missing")
        try:
            tree = json.loads((folder / MODEL_CONFIG_FILE).read_text())
            config = from_dict(ModelConfig, tree["model"], "model")
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / MODEL_CONFIG_FILE}: not a model configuration: {error}") from None
        weights = load_tensors(folder / WEIGHTS_FILE)
        model = cls(config, tree.get("text_encoder_config"))
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{folder / WEIGHTS_FILE}: weights do not fit {MODEL_CONFIG_FILE}: {error}") from None
        return model.eval()


class UnimodalStage(nn.Module):
    """Bi-LSTM over the tokens of one modality, then stacked self-attention (III-A): features to f_m."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.lstm = BiLSTM(width, d) if config.unimodal_lstm else None
        self.project = nn.Identity() if config.unimodal_lstm else nn.Linear(width, d)
        self.norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(AttentionLayer([d], 1.0, config) for _ in range(config.unimodal_layers))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """`(U, L, d_m)` features and their bool `(U, L)` mask, a prefix of True, to `(U, L, d)`."""
        x = self.input_dropout(features)
        x = self.lstm(x, mask.sum(-1)) if self.lstm is not None else self.project(x)
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, mask, [x], [mask])
        return x


class CentralNetwork(nn.Module):
    """The Central network of one modality (III-B): every layer attends to the other modalities' f_n (Eq. 1)."""

    def __init__(self, num_peripherals: int, config: ModelConfig) -> None:
        super().__init__()
        sources = [config.d_model] * num_peripherals
        self.layers = nn.ModuleList(AttentionLayer(sources, config.man_gate, config) for _ in range(config.man_layers))

    def forward(self, tokens: Tensor, mask: Tensor, peripherals: list[Tensor], masks: list[Tensor]) -> Tensor:
        """`(U, L, d)` tokens of this modality to g^h, the state after the last layer, of the same shape."""
        g = tokens
        for layer in self.layers:
            g = layer(g, mask, peripherals, masks)
        return g


class AttentionLayer(nn.Module):
    """g + attention to the sources (Eq. 1), then a dense layer with a residual; without a source the dense layer only.

    The layer norms before both are ours: four layers train unreliably without.
    """

    def __init__(self, source_dims: list[int], gate: str | float, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.attention = None
        if source_dims:
            self.attention_norm = nn.LayerNorm(d)
            self.attention = PeripheralCentralAttention(
                d,
                config.num_heads,
                source_dims,
                gate=gate,
                head_merge=config.head_merge,
                backend=config.backend,
            )
        self.dense_norm = nn.LayerNorm(d)
        self.dense = nn.Linear(d, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, g: Tensor, mask: Tensor, sources: list[Tensor], masks: list[Tensor]) -> Tensor:
        if self.attention is not None:
            attended, _ = self.attention(self.attention_norm(g), sources, query_mask=mask, key_masks=masks)
            g = g + self.dropout(attended)
        return g + self.dropout(F.gelu(self.dense(self.dense_norm(g))))


class TemporalStage(nn.Module):
    """Dialogue context over all utterances, speaker context over the speaker's own (III-D).

    "bilstm" (the paper): two parallel Bi-LSTMs. "attention" (ours): one attention over the sources "same speaker" and
    "any speaker", causal for real-time use. Their results stand beside the utterance's own descriptor.
    """

    def __init__(self, fused_width: int, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.kind, self.causal = config.temporal, config.causal
        self.project = nn.Linear(fused_width, d)
        self.norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)
        self.width = d
        if self.kind == "bilstm":
            self.dialogue_lstm = BiLSTM(d, d, config.temporal_layers, config.dropout)
            self.speaker_lstm = BiLSTM(d, d, config.temporal_layers, config.dropout)
            self.width = 3 * d
        elif self.kind == "attention":
            self.layers = nn.ModuleList(ContextLayer(config) for _ in range(config.temporal_layers))
            self.width = 2 * d

    def forward(self, fused: Tensor, batch: Batch) -> Tensor:
        """`(U, fused_width)` to `(U, width)`."""
        x = self.dropout(F.gelu(self.norm(self.project(fused))))
        if self.kind == "none":
            return x
        by_dialogue = Sequences(batch.dialogue)
        if self.kind == "bilstm":
            by_speaker = Sequences(batch.dialogue * (batch.speaker.max() + 1) + batch.speaker)
            contexts = [
                grouping.flat(lstm(grouping.padded(x), grouping.lengths))
                for grouping, lstm in ((by_dialogue, self.dialogue_lstm), (by_speaker, self.speaker_lstm))
            ]
        else:
            context = by_dialogue.padded(x)
            context = context + sinusoids(context.shape[1], context.shape[2], context)
            speakers, mask = by_dialogue.padded(batch.speaker), by_dialogue.mask
            for layer in self.layers:
                context = layer(context, speakers, mask, self.causal)
            contexts = [by_dialogue.flat(context)]
        return self.dropout(torch.cat([x, *contexts], dim=-1))


class ContextLayer(nn.Module):
    """Each utterance attends to its speaker's utterances and to everybody's, as two sources of one attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.attention_norm, self.dense_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = PeripheralCentralAttention(d, config.num_heads, [d, d], gate="learned", backend=config.backend)
        self.dense = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * d, d))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, speakers: Tensor, mask: Tensor, causal: bool) -> Tensor:
        """`(B, N, d)` utterances of B dialogues, their speakers and their bool mask, both `(B, N)`."""
        y = self.attention_norm(x)
        attended, _ = self.attention(
            y,
            [y, y],
            key_masks=[mask, mask],
            query_groups=speakers,
            key_groups=[speakers, speakers],
            relations=["same", "any"],
            causal=causal,
        )
        x = x + self.dropout(attended)
        return x + self.dropout(self.dense(self.dense_norm(x)))


class BiLSTM(nn.Module):
    """A bidirectional LSTM over padded sequences whose result does not depend on the padding."""

    def __init__(self, width: int, d_model: int, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        between = dropout if num_layers > 1 else 0.0
        self.lstm = nn.LSTM(width, d_model // 2, num_layers, batch_first=True, bidirectional=True, dropout=between)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`(S, L, width)` and `(S,)` lengths to `(S, L, d_model)`, 0 behind each length."""
        if x.shape[0] == 0:
            return x.new_zeros(*x.shape[:2], 2 * self.lstm.hidden_size)
        # a sequence of length 0 (absent modality) runs over one step of zeros; whoever reads it masks it
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        out, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return out


class Sequences:
    """Rows `(U, ...)` grouped into padded sequences `(S, N, ...)` by a key, in their order, and back."""

    def __init__(self, key: Tensor) -> None:
        self.order = torch.argsort(key, stable=True)
        _, self.lengths = torch.unique_consecutive(key[self.order], return_counts=True)
        starts = self.lengths.cumsum(0) - self.lengths
        self.row = torch.repeat_interleave(torch.arange(len(self.lengths), device=key.device), self.lengths)
        self.column = torch.arange(len(key), device=key.device) - starts[self.row]
        self.longest = int(self.lengths.max())

    @property
    def mask(self) -> Tensor:
        """bool `(S, N)`, True = a real row."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]

    def padded(self, rows: Tensor) -> Tensor:
        out = rows.new_zeros(len(self.lengths), self.longest, *rows.shape[1:])
        out[self.row, self.column] = rows[self.order]
        return out

    def flat(self, padded: Tensor) -> Tensor:
        out = padded.new_empty(len(self.order), *padded.shape[2:])
        out[self.order] = padded[self.row, self.column]
        return out


def average(tokens: Tensor, mask: Tensor) -> Tensor:
    """Average of `(U, L, d)` tokens where the bool `(U, L)` mask is True; 0 where it never is."""
    total = tokens.masked_fill(~mask[..., None], 0.0).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """Sine and cosine position codes `(length, width)`."""
    position = torch.arange(length, device=like.device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=like.device) * (-9.21 / width))  # 10000 ** -(2i / width)
    return torch.stack([torch.sin(position * rate), torch.cos(position * rate)], dim=-1).flatten(1).to(like.dtype)


def _drop_modalities(present: Tensor, chances: list[float]) -> Tensor:
    """Take away each modality with its chance, but never all of an utterance."""
    kept = present & (
        torch.rand(present.shape, device=present.device) >= present.new_tensor(chances, dtype=torch.float)
    )
    return torch.where(kept.any(-1, keepdim=True), kept, present)


def _swap_modalities(batch: Batch, chances: dict[str, float]) -> Batch:
    """Swap noise: some utterances get a modality of another utterance of the batch, so that none is trusted blindly."""
    features, masks = dict(batch.features), dict(batch.masks)
    for name, chance in chances.items():
        count, device = len(masks[name]), masks[name].device
        other = torch.randint(count, (count,), device=device)
        source = torch.where(torch.rand(count, device=device) < chance, other, torch.arange(count, device=device))
        features[name], masks[name] = features[name][source], masks[name][source]
    return replace(batch, features=features, masks=masks)
