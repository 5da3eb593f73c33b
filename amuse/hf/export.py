"""Exports a trained run as a folder that works without this package: transformers reads it, and ONNX Runtime."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from amuse.config import DataConfig
from amuse.data.load import words_modality
from amuse.encoders.hub import without_progress_bars
from amuse.evaluation.calibration import load_temperature
from amuse.evaluation.load import load_best, load_run
from amuse.evaluation.predict import predict, score_predictions
from amuse.files import BEST, read_json, write_text
from amuse.hf.card import CARD_FILE, model_card
from amuse.hf.modeling import AmuseForUtteranceClassification
from amuse.hf.pipeline import TASK
from amuse.hf.processing import AmuseProcessor, standardizer_dict
from amuse.hf.remote_code import flat_name, write_remote_code

TEXT_OPTIONS = ("encoder", "encoder_mode", "layers", "merge", "pool", "context", "speakers", "max_tokens")
# transformers' names of classes -> where the folder's own code has them
MODEL_CODE = {
    "AutoConfig": f"{flat_name('amuse.hf.configuration')}.AmuseConfig",
    "AutoModel": f"{flat_name('amuse.hf.modeling')}.AmuseModel",
    "AutoModelForTokenClassification": f"{flat_name('amuse.hf.modeling')}.AmuseForUtteranceClassification",
}
# a pipeline asks for the processor as a feature extractor
PROCESSOR_CODE = {
    name: f"{flat_name('amuse.hf.processing')}.AmuseProcessor" for name in ("AutoProcessor", "AutoFeatureExtractor")
}
PIPELINES = {
    TASK: {
        "impl": f"{flat_name('amuse.hf.pipeline')}.EmotionInConversationPipeline",
        "pt": ["AutoModelForTokenClassification"],
    }
}


def export_run(
    run: str | Path, out: str | Path, *, onnx: bool = False, scores: bool = True
) -> tuple[AmuseForUtteranceClassification, AmuseProcessor]:
    """Write the best model of a run to `out`: weights, processor, code, a model card and, on request, an ONNX graph.

    Args:
        run: Folder of the run.
        out: A new or empty folder.
        onnx: Also write `model.onnx`, see `amuse.onnx.export_onnx`.
        scores: Score the test split for the card, which needs the run's data.

    Raises:
        FileNotFoundError: No such run, or `scores` and its data are not there.
        FileExistsError: `out` is not empty.
        ImportError: `onnx` without the extra of that name.
        ValueError: A damaged checkpoint, or `onnx` of a model that has no such graph.
    """
    run, out = Path(run), Path(out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: expected a new or empty folder")
    network, standardizer, config = load_best(run)
    validation = json.dumps(read_json(run / BEST / "valid.json"), indent=2)
    test = _test_scores(run) if scores else None
    words = words_modality(config.data)
    if words not in network.spec.modalities:
        words = None
    temperature = load_temperature(run)
    processor = AmuseProcessor(
        network.spec.modalities,
        network.spec.label_names,
        text=None if words is None else text_options(config.data),
        text_modality=words or "text",
        standardizer=None if standardizer is None else standardizer_dict(standardizer),
        temperature=temperature,
        auto_map=PROCESSOR_CODE,
    )
    # which kernels run is a matter of the machine; and a run does not keep the class frequencies that weighted its loss
    network.config.backend = None
    model = AmuseForUtteranceClassification.from_amuse(
        network, replace(config.loss, class_weights=0.0), auto_map=MODEL_CODE, custom_pipelines=PIPELINES
    )
    out.mkdir(parents=True, exist_ok=True)
    if onnx:  # first, since it is what may fail
        from amuse.onnx import MODEL_FILE, export_onnx

        export_onnx(network, out / MODEL_FILE, standardizer, temperature)
    with without_progress_bars():
        model.save_pretrained(out)
    processor.save_pretrained(out)
    write_remote_code(out)
    write_text(model_card(network, config, validation, test, onnx, words), out / CARD_FILE)
    return model, processor


def text_options(data: DataConfig) -> dict[str, Any]:
    """The settings by which a run encodes text, for `AmuseProcessor`."""
    options = asdict(data)
    return {name: options[name] for name in TEXT_OPTIONS}


def _test_scores(run: Path) -> str:
    model, conversations, config = load_run(run, "test")
    predictions = predict(model, conversations, config.train.batch_size)
    return score_predictions(predictions, conversations.label_names).report()
