"""AMuSE (arXiv 2401.15164): from token features of every modality to an emotion for every utterance of a dialogue.

Sizes: U utterances of all dialogues of a batch, M modalities, T_m tokens of modality m in all of them, d = d_model, C
classes. Tokens are packed, utterance after utterance: nothing is computed for padding. Data flow
through the unimodal stage (III-A), the Multimodal Attention Network (III-B), adaptive fusion (III-C), the temporal
stage (III-D) and the classifier; `amuse.model.stages` has the parts.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from amuse.config import ModelConfig, from_dict, split_data_keys
from amuse.data.batch import Batch, present_modalities
from amuse.data.conversation import TOKEN_IDS
from amuse.data.mix import Mix
from amuse.data.spec import DataSpec
from amuse.encoders.trainable import PretrainedEncoder, SignalEncoder, TextEncoder
from amuse.files import load_tensors, read_json, save_tensors, write_text
from amuse.model.allocation import AllocationLimit
from amuse.model.fusion import closed_form, flipped, fuse
from amuse.model.output import Output
from amuse.model.packed import average
from amuse.model.stages import JoinedWeights, MultimodalAttentionNetwork, StreamsStage, UnimodalStage
from amuse.model.temporal import TemporalStage
from amuse_kernels.nn import AdaptiveFusion

MODEL_CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class Amuse(nn.Module):
    """Adaptive interactive Multimodal Network for emotion recognition in conversations (paper section III).

    Args:
        config: The network.
        spec: Its inputs and outputs.
        encoder_configs: Stream -> architecture of its encoder, which then gets random weights; a stream that is not
            named gets the pretrained weights of `spec.text_encoder` or `spec.raw`. Only for streams of token ids or raw
            windows and frames.

    Raises:
        ValueError: A configuration that does not fit the data.
    """

    def __init__(
        self, config: ModelConfig, spec: DataSpec, encoder_configs: dict[str, dict[str, Any]] | None = None
    ) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.recompute = False
        self.groups = fitting_groups(config, spec)
        self.modalities = list(self.groups)
        d, count = config.d_model, len(self.modalities)
        widths = dict(spec.modalities)

        self.encoders = nn.ModuleDict()
        for name, width in spec.modalities.items():
            given = (encoder_configs or {}).get(name)
            if width == TOKEN_IDS:
                assert spec.text_encoder is not None  # DataSpec has checked it
                self.encoders[name] = _encoder(TextEncoder, spec.text_encoder, given, config.encoder_layers)
            elif name in spec.raw:
                raw = spec.raw[name]
                self.encoders[name] = _encoder(SignalEncoder, raw.encoder, given, config.encoder_layers, raw.shape)
        widths |= {name: cast(PretrainedEncoder, encoder).width for name, encoder in self.encoders.items()}
        self.unimodal = nn.ModuleList(
            UnimodalStage(widths[streams[0]], config)
            if len(streams) == 1
            else StreamsStage([widths[name] for name in streams], config)
            for streams in self.groups.values()
        )
        self.central = MultimodalAttentionNetwork(count, config) if config.man else None
        self.heads = nn.ModuleList(nn.Linear(d, spec.num_outputs) for _ in self.modalities)
        self.fusion = AdaptiveFusion(d, count, config.backend) if config.fusion == "learned" else None
        if self.fusion is not None:
            with torch.no_grad():
                self.fusion.pair_weight.mul_(config.gate_scale)
        fused_width = d if config.fusion == "chain" else count * d
        self.temporal = TemporalStage(fused_width, config)
        self.classifier = nn.Linear(self.temporal.width, spec.num_outputs)
        self.voice = nn.Linear(count * d, d) if config.speaker_head else None
        for parameter in self.parameters():
            if not parameter.numel():  # the pair weights of a single modality: nothing to learn, nothing to shard
                parameter.requires_grad_(False)

    def forward(self, batch: Batch, mix: Mix | None = None) -> Output:
        """Predict every utterance of the batch.

        Args:
            batch: Labels are not looked at, but by the gate's teacher in training.
            mix: Which utterances to interpolate before the temporal stage (mixup).
        """
        descriptors, modality_logits, present = self.describe(batch)
        fused, alpha = self.fuse(descriptors, present)
        context = self._run(self.temporal, fused if mix is None else mix.apply(fused), batch)
        output = Output(self.classifier(context), modality_logits, descriptors, alpha, present, context=context)
        if self.training and self.config.gate_teacher:
            output.teacher = closed_form(descriptors, self._linear_heads, self.config, batch.labels)
        if self.voice is not None:
            output.voices = F.normalize(self.voice(descriptors.flatten(1)).float(), dim=-1)
        return output

    def describe(self, batch: Batch, joined: JoinedWeights | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-attended descriptors `(U, M, d)`, the modalities' own logits `(U, M, C)` and their presence `(U, M)`.

        Nothing here looks at another utterance. With `joined`, work on the weights is kept for the next call.
        """
        tokens, layouts = [], []
        for stage, streams in zip(self.unimodal, self.groups.values(), strict=True):
            of_streams = [batch.layouts[name] for name in streams]
            features = [
                self.encoders[name](batch.tokens[name], layout) if name in self.encoders else batch.tokens[name]
                for name, layout in zip(streams, of_streams, strict=True)
            ]
            if len(streams) == 1:
                tokens.append(self._run(stage, features[0], of_streams[0], joined))  # (T_m, d)
                layouts.append(of_streams[0])
            else:
                merge = batch.merge(streams)
                tokens.append(self._run(stage, features, of_streams, merge, joined))
                layouts.append(merge.layout)

        states = tokens
        if self.central is not None:
            states = self.central(tokens, layouts, self.recompute and self.training, joined)
        pooled = [average(state, layout) for state, layout in zip(states, layouts, strict=True)]
        descriptors = torch.stack(pooled, dim=1)
        return descriptors, self._modality_logits(descriptors), present_modalities(batch, self.groups)

    def _modality_logits(self, descriptors: Tensor) -> Tensor:
        """`(U, M, d)` to `(U, M, C)`, each modality by its own head, in one product."""
        weight, bias = (torch.stack([getattr(head, name) for head in self.heads]) for name in ("weight", "bias"))
        return torch.baddbmm(bias[:, None], descriptors.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)

    def recompute_activations(self) -> None:
        """Training keeps the inputs of the stages and computes the rest again in the backward pass: less memory."""
        self.recompute = True
        for encoder in self.encoders.values():
            cast(PretrainedEncoder, encoder).model.gradient_checkpointing_enable()

    def blocks(self) -> list[nn.Module]:
        """The parts that hold nearly all weights and run one after the other, for sharding."""
        layers = [layer for encoder in self.encoders.values() for layer in cast(PretrainedEncoder, encoder).blocks()]
        central = [] if self.central is None else [self.central]
        return [*layers, *self.unimodal, *central, self.temporal]

    def output_layers(self) -> list[nn.Linear]:
        """The last layers: of the model's prediction and of every modality's own."""
        return [self.classifier, *self._linear_heads]

    def _run(self, stage: nn.Module, *arguments: Any) -> Tensor:
        if self.recompute and self.training:
            return checkpoint(stage, *arguments, use_reentrant=False)
        return stage(*arguments)

    def fuse(self, descriptors: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        """A(u) of Eq. 2, `(U, M * d)` (chain: `(U, d)`), and the coefficients; see `amuse.model.fusion`."""
        return fuse(descriptors, present, self._linear_heads, self.fusion, self.config)

    def flipped(self, descriptors: Tensor, present: Tensor) -> Tensor:
        """Utterances whose predicted class Eq. 6 changes, bool `(U,)`; see `amuse.model.fusion.flipped`."""
        return flipped(descriptors, present, self._linear_heads, self.config)

    @property
    def _linear_heads(self) -> list[nn.Linear]:
        return [cast(nn.Linear, head) for head in self.heads]

    @property
    def encoder_configs(self) -> dict[str, dict[str, Any]]:
        """Stream -> architecture of the encoder that is trained with the model."""
        return {name: cast(PretrainedEncoder, encoder).config for name, encoder in self.encoders.items()}

    def save_pretrained(self, folder: str | Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write config.json and model.safetensors, each at once or not at all; `weights`: in place of its own."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tree = {"model": asdict(self.config), "data": asdict(self.spec), "encoder_configs": self.encoder_configs}
        save_tensors(self.state_dict() if weights is None else weights, folder / WEIGHTS_FILE)
        write_text(json.dumps(tree, indent=2), folder / MODEL_CONFIG_FILE)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The model that `save_pretrained` wrote.

        Raises:
            FileNotFoundError: No such folder or file.
            ValueError: A truncated or foreign file, weights that do not fit, or a configuration of a model far larger
                than the weights, before memory is taken for it. Pickled weights are never read.
        """
        folder = Path(folder)
        for name in (MODEL_CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder}: expected {MODEL_CONFIG_FILE} and {WEIGHTS_FILE}, {name} is missing")
        tree = read_json(folder / MODEL_CONFIG_FILE)
        weights = load_tensors(folder / WEIGHTS_FILE)
        try:
            network, written_by_0_1 = split_data_keys(tree["model"])
            config = from_dict(ModelConfig, network, "model")
            spec = from_dict(DataSpec, tree.get("data", written_by_0_1), "data")
            encoders = tree.get("encoder_configs") or {}
            if not isinstance(encoders, dict) or not all(isinstance(entry, dict) for entry in encoders.values()):
                raise TypeError(f"encoder_configs: expected stream -> architecture, got {encoders!r}")
            with AllocationLimit(weights) as limit:
                limit.check_integers(tree)
                model = cls(config, spec, encoders)
        except (ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{folder / MODEL_CONFIG_FILE}: not a model configuration: {error!r}") from None
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{folder / WEIGHTS_FILE}: weights do not fit {MODEL_CONFIG_FILE}: {error}") from None
        return model.eval()


def _encoder(
    kind: type[PretrainedEncoder], name: str, config: dict[str, Any] | None, *arguments: Any
) -> PretrainedEncoder:
    return kind.from_pretrained(name, *arguments) if config is None else kind(config, *arguments)


def fitting_groups(config: ModelConfig, spec: DataSpec) -> dict[str, list[str]]:
    """Modality of the model -> the data's streams that make it.

    Raises:
        ValueError: A setting that does not fit the data.
    """
    groups = config.groups(spec.modalities)
    if len(groups) > 8:
        raise ValueError(f"modalities: expected at most 8, got {len(groups)}")
    for name in ("modality_dropout", "modality_swap"):
        unknown = set(getattr(config, name)) - set(groups)
        if unknown:
            raise ValueError(f"{name}: expected names out of {', '.join(groups)}, got {sorted(unknown)[0]!r}")
    if spec.regression and config.fusion in ("closed_form", "chain"):
        raise ValueError(f"fusion: {config.fusion!r} needs classes, since Eq. 6 uses the predicted label")
    if spec.regression and config.gate_teacher:
        raise ValueError("gate_teacher: needs classes, since Eq. 6 uses the label")
    return groups
