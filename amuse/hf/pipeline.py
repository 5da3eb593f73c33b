"""The transformers pipeline "emotion-in-conversation": dialogues to the emotion of every utterance."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import Pipeline
from transformers.utils import ModelOutput

from amuse.hf.processing import EXAMPLE, AmuseProcessor

TASK = "emotion-in-conversation"


class EmotionInConversationPipeline(Pipeline):
    """Predicts every utterance of a dialogue, or of each of several.

    A dialogue is a list of utterances, mappings with the fields that `amuse.hf.AmuseProcessor` takes, such as
    `{"speaker": "Ann", "text": "Really?"}`. The result has, for each utterance in order, `label` and `probabilities`,
    or `value` from a regression.
    """

    # transformers' own class of processors consists of other processors, so ours is loaded as a feature extractor
    _load_feature_extractor: Any = True
    _load_processor: Any = False
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False

    def __call__(self, dialogues: Sequence[Any], **options: Any) -> Any:  # type: ignore[override]
        """Predict a dialogue, or a list of dialogues.

        Raises:
            ValueError: No utterance, or one that the processor refuses.
        """
        if not dialogues or isinstance(dialogues, str | Mapping):
            got = repr(dialogues)[:80] if dialogues else "none"
            raise ValueError(f"dialogues: expected a list of utterances such as {EXAMPLE}, or of such lists, got {got}")
        if isinstance(dialogues[0], str):
            raise ValueError(f"dialogues: expected utterances such as {EXAMPLE}, got {dialogues[0][:80]!r}")
        # as a tuple, since transformers takes a list as one input each
        if isinstance(dialogues[0], Mapping):
            return super().__call__(tuple(dialogues), **options)
        return super().__call__([tuple(dialogue) for dialogue in dialogues], **options)

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if parameters:
            raise ValueError(f"{next(iter(parameters))}: the pipeline {TASK!r} has no such option")
        return {}, {}, {}

    def preprocess(self, dialogue: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        return dict(cast(AmuseProcessor, self.feature_extractor)([list(dialogue)], labels=False))

    def _forward(self, input_tensors: Any, **options: Any) -> ModelOutput:
        output = self.model(**input_tensors)
        return ModelOutput(logits=output.logits, utterances=input_tensors["utterances"])

    def postprocess(self, output: Any, **options: Any) -> list[dict[str, Any]]:  # type: ignore[override]
        processor = cast(AmuseProcessor, self.feature_extractor)
        return processor.predictions(output["logits"], output["utterances"])[0]
