"""The configuration of AMuSE as transformers keeps it."""

from dataclasses import asdict
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

from amuse.config import LossConfig, ModelConfig, from_dict
from amuse.model.amuse import Amuse


class AmuseConfig(PreTrainedConfig):
    """Holds `amuse.config.ModelConfig` and `LossConfig` as plain dicts, whose keys and types are checked.

    The labels follow from `network["label_names"]`: `id2label` and `num_labels` cannot be set apart from it.

    Attributes:
        network: Of `ModelConfig`; `modalities` has to be there to build a model.
        loss: Of `LossConfig`.
        encoder_configs: Stream -> architecture of the encoder that is trained with the model.
        modality_order: Of the modalities, since transformers sorts the keys of dicts; when left out, that of `network`.
        class_weights: One a class, for `loss["class_weights"]`, see `amuse.training.optimization.class_weights`.
    """

    model_type = "amuse"
    keys_to_ignore_at_inference: ClassVar = ["modality_logits", "descriptors", "alpha"]

    network: dict[str, Any] | None = None
    loss: dict[str, Any] | None = None
    encoder_configs: dict[str, Any] | None = None
    modality_order: list[str] | None = None
    class_weights: list[float] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        network = from_dict(ModelConfig, self.network or {}, "network")
        self.modality_order = self.modality_order or list(network.modalities)
        if set(self.modality_order) != set(network.modalities):
            raise ValueError(f"modality_order: expected {list(network.modalities)}, got {self.modality_order}")
        network.modalities = {name: network.modalities[name] for name in self.modality_order}
        self.network, self.loss = asdict(network), asdict(from_dict(LossConfig, self.loss or {}, "loss"))
        names = network.label_names
        if names is not None and self.class_weights is not None and len(self.class_weights) != len(names):
            raise ValueError(f"class_weights: expected one a class, {len(names)}, got {len(self.class_weights)}")
        # "value" is the one output of a regression
        self.id2label = dict(enumerate(names if names is not None else ["value"]))
        self.label2id = {name: index for index, name in self.id2label.items()}
        self.problem_type = "regression" if names is None else None
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, model: Amuse, loss: LossConfig | None = None, **kwargs: Any) -> Self:
        """Of a model that is there."""
        return cls(
            network=asdict(model.config),
            loss=asdict(loss or LossConfig()),
            encoder_configs=model.encoder_configs,
            **kwargs,
        )

    def network_config(self) -> ModelConfig:
        """Raises ValueError for labels that were set apart from the network's."""
        network = from_dict(ModelConfig, self.network, "network")
        if self.num_labels != network.num_outputs:
            raise ValueError(
                f"num_labels: expected {network.num_outputs}, got {self.num_labels}; the classes are those of "
                "network['label_names'], set them there"
            )
        return network

    def loss_config(self) -> LossConfig:
        return from_dict(LossConfig, self.loss, "loss")
