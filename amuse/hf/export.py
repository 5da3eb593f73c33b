"""Exports a trained run as a folder that transformers reads."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from amuse.config import DataConfig
from amuse.data.load import words_modality
from amuse.evaluation.calibration import load_temperature
from amuse.evaluation.load import load_best
from amuse.hf.modeling import AmuseForUtteranceClassification
from amuse.hf.processing import AmuseProcessor, standardizer_dict

TEXT_OPTIONS = ("encoder", "encoder_mode", "layers", "merge", "pool", "context", "speakers", "max_tokens")


def export_run(run: str | Path, out: str | Path) -> tuple[AmuseForUtteranceClassification, AmuseProcessor]:
    """Write the best model of a run, and the processor that makes its inputs, to `out`.

    Raises:
        FileNotFoundError: No such run.
        FileExistsError: `out` is not empty.
        ValueError: A damaged checkpoint.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: expected a new or empty folder")
    network, standardizer, config = load_best(run)
    words = words_modality(config.data)
    if words not in network.spec.modalities:
        words = None
    processor = AmuseProcessor(
        network.spec.modalities,
        network.spec.label_names,
        text=None if words is None else text_options(config.data),
        text_modality=words or "text",
        standardizer=None if standardizer is None else standardizer_dict(standardizer),
        temperature=load_temperature(run),
    )
    # a run does not keep the class frequencies that weighted its loss
    model = AmuseForUtteranceClassification.from_amuse(network, replace(config.loss, class_weights=0.0))
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return model, processor


def text_options(data: DataConfig) -> dict[str, Any]:
    """The settings by which a run encodes text, for `AmuseProcessor`."""
    options = asdict(data)
    return {name: options[name] for name in TEXT_OPTIONS}
