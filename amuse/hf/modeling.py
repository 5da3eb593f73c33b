"""AMuSE as transformers models. Sizes: B dialogues of a batch, N utterances of the longest, M modalities, C classes.

Inside, the utterances of all dialogues are flat, as everywhere in `amuse`; the padding of transformers' batches is
removed before anything is computed and restored at the end.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from amuse.config import LossConfig
from amuse.data.batch import UNLABELLED, Batch
from amuse.hf.configuration import AmuseConfig
from amuse.model.amuse import Amuse
from amuse.model.output import Output
from amuse.training.augmentation import augment
from amuse.training.losses import amuse_loss


@dataclass
class AmuseModelOutput(ModelOutput):
    """Outputs per utterance; 0 for padding.

    Attributes:
        last_hidden_state: `(B, N, width)`, utterances in context, the classifier's input.
        descriptors: `(B, N, M, d)`, the modalities' cross-attended descriptors.
        alpha: `(B, N, M, M)` or `(B, N, M, M, d)`, coefficients of the adaptive fusion, if it has any.
    """

    last_hidden_state: Tensor | None = None
    descriptors: Tensor | None = None
    alpha: Tensor | None = None


@dataclass
class AmuseUtteranceOutput(ModelOutput):
    """Outputs per utterance; 0 for padding.

    Attributes:
        loss: The weighted sum of the paper's losses; None without labels.
        logits: `(B, N, C)`, or `(B, N, 1)` for regression.
        modality_logits: `(B, N, M, C)`, those of each modality's Central network.
        descriptors, alpha: As in `AmuseModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    modality_logits: Tensor | None = None
    descriptors: Tensor | None = None
    alpha: Tensor | None = None


class AmusePreTrainedModel(PreTrainedModel):
    """`amuse.model.amuse.Amuse` with transformers' interface to save, load and train it.

    `dtype` of `from_pretrained` may be a low precision: features are converted.
    """

    config_class = AmuseConfig
    config: AmuseConfig
    base_model_prefix = "amuse"
    main_input_name = "utterances"
    supports_gradient_checkpointing = True
    # each loss is a mean over its batch; the Trainer must not divide it by a number of items again
    accepts_loss_kwargs = False

    def __init__(self, config: AmuseConfig) -> None:
        super().__init__(config)
        self.amuse = Amuse(config.network_config(), config.data_spec(), config.encoder_configs)
        self.gradient_checkpointing = False
        if not any(parameter.is_meta for parameter in self.amuse.parameters()):
            for module in self.amuse.modules():  # the weights are initialised already
                module._is_hf_initialized = True  # type: ignore[assignment]
        self.post_init()

    @classmethod
    def from_amuse(cls, model: Amuse, loss: LossConfig | None = None, **kwargs: Any) -> Self:
        """With the weights of a model, such as the best one of a run; `kwargs` as for `AmuseConfig`."""
        self = cls(AmuseConfig.of(model, loss, **kwargs))
        self.amuse.load_state_dict(model.state_dict())
        return self.train(model.training)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise weights that a checkpoint lacks; transformers protects loaded ones."""
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()

    def _set_gradient_checkpointing(self, enable: bool = True, *arguments: Any, **options: Any) -> None:
        """transformers' switch: it applies to an encoder's layers, `Amuse.recompute` to the stages of AMuSE."""
        super()._set_gradient_checkpointing(enable, *arguments, **options)
        self.amuse.recompute = enable

    def forward(
        self,
        features: dict[str, Tensor],
        masks: dict[str, Tensor],
        utterances: Tensor,
        speakers: Tensor,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Run the model on padded dialogues; `AmuseProcessor` makes the arguments from conversations.

        Args:
            features: Modality -> `(B, N, L, width)` token features, or `(B, N, L)` token ids.
            masks: Modality -> bool `(B, N, L)`, a prefix of True; all False = the utterance lacks the modality.
            utterances: bool `(B, N)`, False = padding.
            speakers: int64 `(B, N)`, index of the speaker within the dialogue.
            labels: int64 `(B, N)`, or floating point for regression; -100 = unlabelled or padding.
            return_dict: False = a tuple; None = as the configuration says.

        Raises:
            ValueError: `AmuseModel` got labels. `AmuseForUtteranceClassification`: the loss needs class weights and the
                configuration has none; or a training step has no labels, as with Trainer's `label_smoothing_factor`,
                which would replace the losses of the paper.
        """
        self._check_labels(labels)
        batch = self._batch(features, masks, utterances, speakers, labels)
        result = self._result(self.amuse(batch), batch)
        for name, rows in result.items():
            if name != "loss":
                result[name] = _padded(rows, utterances)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return result if as_dict else result.to_tuple()

    def _check_labels(self, labels: Tensor | None) -> None:
        """Refuse labels that this model cannot use, or missing labels that it needs."""
        raise NotImplementedError

    def _result(self, output: Output, batch: Batch) -> ModelOutput:
        """The model's outputs, with a row per real utterance."""
        raise NotImplementedError

    def _batch(
        self,
        features: dict[str, Tensor],
        masks: dict[str, Tensor],
        utterances: Tensor,
        speakers: Tensor,
        labels: Tensor | None,
    ) -> Batch:
        """The real utterances, one after the other."""
        if labels is not None:
            labels = labels[utterances]
            if labels.is_floating_point():
                labels = labels.masked_fill(labels == UNLABELLED, float("nan"))
        lengths = utterances.sum(1).cpu()
        batch = Batch.of_padded(
            features={name: self._converted(tokens[utterances]) for name, tokens in features.items()},
            masks={name: mask[utterances] for name, mask in masks.items()},
            dialogue_lengths=lengths[lengths > 0],
            speaker=speakers[utterances],
            labels=labels,
        )
        config = self.amuse.config
        if not self.training or not (config.modality_dropout or config.modality_swap):
            return batch
        return augment(batch.to("cpu"), config, self.amuse.groups).to(utterances.device)

    def _converted(self, tokens: Tensor) -> Tensor:
        return tokens.to(self.dtype) if tokens.is_floating_point() else tokens


class AmuseModel(AmusePreTrainedModel):
    """AMuSE without its classifier: utterances in context (`AutoModel`)."""

    def _check_labels(self, labels: Tensor | None) -> None:
        if labels is not None:
            raise ValueError("labels: AmuseModel has no loss; expected None, or AmuseForUtteranceClassification")

    def _result(self, output: Output, batch: Batch) -> AmuseModelOutput:
        return AmuseModelOutput(output.context, output.descriptors, output.alpha)


class AmuseForUtteranceClassification(AmusePreTrainedModel):
    """Predicts a label, or without label names a number, per utterance (`AutoModelForTokenClassification`)."""

    def _check_labels(self, labels: Tensor | None) -> None:
        if labels is None and self.training and torch.is_grad_enabled():
            raise ValueError(
                "labels: expected labels in a training step, got none. Trainer's label_smoothing_factor removes them "
                "to replace AMuSE's loss by its own: set loss['label_smoothing'] of AmuseConfig instead. To predict, "
                "call eval()."
            )

    def _result(self, output: Output, batch: Batch) -> AmuseUtteranceOutput:
        loss = None if batch.labels is None else self._loss(output, batch)
        return AmuseUtteranceOutput(loss, output.logits, output.modality_logits, output.descriptors, output.alpha)

    def _loss(self, output: Output, batch: Batch) -> Tensor:
        config, weights = self.config.loss_config(), self.config.class_weights
        if config.class_weights and self.config.problem_type != "regression" and weights is None:
            raise ValueError(
                "class_weights: expected one per class in the configuration, since its loss has class_weights = "
                f"{config.class_weights}; amuse.training.optimization.class_weights counts them"
            )
        given = None if weights is None else torch.tensor(weights, device=output.logits.device)
        return amuse_loss(output, batch.labels, config, given, batch=batch)["loss"]


def _padded(rows: Tensor, utterances: Tensor) -> Tensor:
    """From `(U, ...)` rows of the real utterances to `(B, N, ...)`."""
    padded = rows.new_zeros(*utterances.shape, *rows.shape[1:])
    padded[utterances] = rows
    return padded
