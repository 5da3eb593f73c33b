"""The configuration of AMuSE for transformers."""

from dataclasses import asdict, replace
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

from amuse.config import LossConfig, ModelConfig, from_dict, split_data_keys
from amuse.data.spec import DataSpec
from amuse.model.amuse import Amuse


class AmuseConfig(PreTrainedConfig):
    """Holds `ModelConfig`, `DataSpec` and `LossConfig` as plain dicts, whose keys and types are checked.

    The labels are `data["label_names"]`: `id2label` and `num_labels` cannot be set independently of it.

    Attributes:
        network: Fields of `amuse.config.ModelConfig`.
        data: Fields of `amuse.data.spec.DataSpec`; needed to build a model. Version 0.1 kept them in `network`, where
            they are still read.
        loss: Fields of `LossConfig`.
        encoder_configs: Stream -> architecture of the encoder that is trained with the model.
        modality_order: Order of the modalities, since transformers sorts the keys of dicts; by default that of `data`.
        class_weights: One per class, for `loss["class_weights"]`, see `amuse.training.optimization.class_weights`.
    """

    model_type = "amuse"
    keys_to_ignore_at_inference: ClassVar = ["modality_logits", "descriptors", "alpha"]

    network: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    loss: dict[str, Any] | None = None
    encoder_configs: dict[str, Any] | None = None
    modality_order: list[str] | None = None
    class_weights: list[float] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        network, written_by_0_1 = split_data_keys(self.network or {})
        self.network = asdict(from_dict(ModelConfig, network, "network"))
        self.loss = asdict(from_dict(LossConfig, self.loss or {}, "loss"))
        given = self.data or written_by_0_1
        names: list[str] | None = None
        if given:  # transformers creates a default configuration, without data, to compare with
            spec = from_dict(DataSpec, given, "data")
            names = spec.label_names
            self.modality_order = self.modality_order or list(spec.modalities)
            if set(self.modality_order) != set(spec.modalities):
                raise ValueError(
                    f"modality_order: expected {', '.join(spec.modalities)}, got {', '.join(self.modality_order)}"
                )
            self.data = asdict(replace(spec, modalities={name: spec.modalities[name] for name in self.modality_order}))
        if names is not None and self.class_weights is not None and len(self.class_weights) != len(names):
            raise ValueError(f"class_weights: expected one per class, {len(names)}, got {len(self.class_weights)}")
        # "value" is the one output of a regression
        self.id2label = dict(enumerate(names if names is not None else ["value"]))
        self.label2id = {name: index for index, name in self.id2label.items()}
        self.problem_type = "regression" if names is None else None
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, model: Amuse, loss: LossConfig | None = None, **kwargs: Any) -> Self:
        """The configuration of a model."""
        return cls(
            network=asdict(model.config),
            data=asdict(model.spec),
            loss=asdict(loss or LossConfig()),
            encoder_configs=model.encoder_configs,
            **kwargs,
        )

    def network_config(self) -> ModelConfig:
        return from_dict(ModelConfig, self.network, "network")

    def data_spec(self) -> DataSpec:
        """The model's inputs and outputs.

        Raises:
            ValueError: No `data`, or labels that differ from them.
        """
        if self.data is None:
            raise ValueError("data: expected the fields of amuse.data.spec.DataSpec to build a model, got None")
        spec = from_dict(DataSpec, self.data, "data")
        if self.num_labels != spec.num_outputs:
            raise ValueError(
                f"num_labels: expected {spec.num_outputs}, got {self.num_labels}; the classes are those of "
                "data['label_names'], set them there"
            )
        return spec

    def loss_config(self) -> LossConfig:
        return from_dict(LossConfig, self.loss, "loss")
