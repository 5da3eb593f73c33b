"""Exports a model to ONNX and checks the result in ONNX Runtime."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import amuse_kernels.decompositions  # noqa: F401  (torch.onnx.export looks them up)
from amuse.data.spec import DataSpec
from amuse.data.standardize import Standardizer
from amuse.model.amuse import Amuse
from amuse.onnx.padded import PaddedAmuse

MODEL_FILE = "model.onnx"
OPSET = 20
TOLERANCE = 1e-4


class OnnxInputs(NamedTuple):
    """A batch of padded dialogues, as `amuse.hf.AmuseProcessor` makes it.

    Attributes:
        features: Modality -> float32 `(B, N, L, width)`.
        masks: Modality -> bool `(B, N, L)`, a prefix of True.
        utterances: bool `(B, N)`, a prefix of True.
        speakers: int64 `(B, N)`.
    """

    features: dict[str, Tensor]
    masks: dict[str, Tensor]
    utterances: Tensor
    speakers: Tensor

    def named(self) -> dict[str, np.ndarray[Any, Any]]:
        """The graph's inputs by name."""
        tensors = {f"features_{name}": x for name, x in self.features.items()}
        tensors |= {f"mask_{name}": x for name, x in self.masks.items()}
        tensors |= {"utterances": self.utterances, "speakers": self.speakers}
        return {name: x.numpy() for name, x in tensors.items()}

    @classmethod
    def example(cls, modalities: Mapping[str, int], dialogues: int, utterances: int, tokens: int) -> "OnnxInputs":
        """Random features; the first dialogue lacks its last utterance, and its first utterance a modality."""
        generator = torch.Generator().manual_seed(0)
        real = torch.ones(dialogues, utterances, dtype=torch.bool)
        real[0, -1] = utterances == 1
        features, masks = {}, {}
        for number, (name, width) in enumerate(modalities.items()):
            shape = dialogues, utterances, tokens + number
            features[name] = torch.randn(*shape, width, generator=generator)
            lengths = torch.randint(1, tokens + number + 1, shape[:2], generator=generator) * real
            if number == 1:
                lengths[0, 0] = 0
            masks[name] = torch.arange(tokens + number) < lengths[..., None]
        return cls(features, masks, real, torch.arange(utterances).expand(dialogues, -1) % 2)


def export_onnx(
    model: Amuse, file: str | Path, standardizer: Standardizer | None = None, temperature: float = 1.0
) -> None:
    """Write a model as one ONNX graph and check that ONNX Runtime computes what the model computes.

    Inputs are those of `OnnxInputs.named`, of any number of dialogues, utterances and tokens; features arrive as in the
    data, since the graph standardizes them. Outputs are `logits` `(B, N, C)`, `probabilities` of that shape unless it
    is a regression, and `modality_logits` `(B, N, M, C)`; those of padding are meaningless.

    Args:
        model: A trained one.
        file: Its new file.
        standardizer, temperature: As for `amuse.onnx.padded.PaddedAmuse`.

    Raises:
        ImportError: The extra `onnx` is not installed.
        ValueError: A model that cannot be exported, see `PaddedAmuse`.
        RuntimeError: ONNX Runtime gives other numbers.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"export to ONNX needs {package}: pip install amuse-kernels[onnx]")
    model = model.cpu().eval()
    padded = PaddedAmuse(model, standardizer, temperature).eval()
    example = OnnxInputs.example(model.spec.modalities, dialogues=2, utterances=3, tokens=4)
    with torch.no_grad(), _without_warnings():
        program = torch.export.export(padded, tuple(example), dynamic_shapes=_shapes(model.spec), strict=False)
        torch.onnx.export(
            program,
            f=str(file),
            input_names=list(example.named()),
            output_names=_outputs(model.spec),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    check_onnx(model, file, standardizer)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences PyTorch's warnings of its own code, and of packages that no model here uses, such as torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def check_onnx(model: Amuse, file: str | Path, standardizer: Standardizer | None = None) -> None:
    """Compare a graph with the model that it was made of, on other sizes than those it was traced with.

    Raises:
        RuntimeError: Logits that differ by more than 1e-4 of the largest.
    """
    import onnxruntime

    from amuse.data.batch import Batch

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for sizes in ((1, 1, 1), (3, 7, 5)):
        inputs = OnnxInputs.example(model.spec.modalities, *sizes)
        found = torch.from_numpy(session.run(["logits"], inputs.named())[0])[inputs.utterances]
        features = {
            name: x if standardizer is None else standardizer.transform(name, x) for name, x in inputs.features.items()
        }
        batch = Batch.of_padded(
            {name: x[inputs.utterances] for name, x in features.items()},
            {name: mask[inputs.utterances] for name, mask in inputs.masks.items()},
            inputs.utterances.sum(1),
            inputs.speakers[inputs.utterances],
        )
        with torch.no_grad():
            expected = model(batch).logits
        worst = float((found - expected).abs().max())
        if not worst <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise RuntimeError(f"{file}: ONNX Runtime's logits differ from the model's by {worst:.2g}")


def _shapes(spec: DataSpec) -> tuple[Any, ...]:
    """The sizes that may differ between calls."""
    dialogues, utterances = torch.export.Dim("dialogues"), torch.export.Dim("utterances")
    tokens = {
        name: {0: dialogues, 1: utterances, 2: torch.export.Dim(f"{name.replace('.', '_')}_tokens")}
        for name in spec.modalities
    }
    return tokens, tokens, {0: dialogues, 1: utterances}, {0: dialogues, 1: utterances}


def _outputs(spec: DataSpec) -> list[str]:
    return ["logits", "modality_logits"] if spec.regression else ["logits", "probabilities", "modality_logits"]
