"""The model card of an exported run: README.md in the format of the Hugging Face hub."""

from amuse.config import Config
from amuse.model.amuse import Amuse
from amuse_kernels import __version__

CARD_FILE = "README.md"


def model_card(
    model: Amuse, config: Config, validation: str, test: str | None, onnx: bool, words: str | None = None
) -> str:
    """Markdown with scores, data, use and limits.

    Args:
        model: The exported one.
        config: Of its run.
        validation: Scores on the split that chose the epoch.
        test: Scores on the test split; None = not measured.
        onnx: Whether the folder has an ONNX graph.
        words: The modality that the processor makes of words; None = it reads features only.
    """
    spec, data = model.spec, config.data
    outputs = "a number" if spec.label_names is None else ", ".join(spec.label_names)
    inputs = "\n".join(
        f"- `{name}`: {'token ids' if width == 0 else f'{width} features per token'}"
        f"{f', made of the words in the field `text` by {data.encoder}' if name == words else ''}"
        for name, width in spec.modalities.items()
    )
    others = ", ".join(f'"{name}": ...' for name in spec.modalities if name != words)
    fields = ['"speaker": "Ann"']
    if words:
        fields.append('"text": "Really?"')
    if others:
        fields.append(f'"features": {{{others}}}')
    unread = "" if words else " It reads no words: the field `text` is refused."
    parameters = sum(parameter.numel() for parameter in model.parameters())
    graph = "\n`model.onnx` is the same model for ONNX Runtime; it standardizes features itself.\n" if onnx else ""
    measured = "Not measured." if test is None else f"```text\n{test}\n```"
    return f"""---
library_name: transformers
pipeline_tag: token-classification
tags: [emotion-recognition, conversation, multimodal, amuse]
---

# AMuSE: emotions in conversations

Predicts, for every utterance of a dialogue, {outputs}. The architecture is AMuSE
([arXiv 2401.15164](https://arxiv.org/abs/2401.15164)), {parameters:,} parameters, trained and exported by amuse-kernels
{__version__}.

```python
from transformers import pipeline

emotions = pipeline("emotion-in-conversation", model="THIS_FOLDER", trust_remote_code=True)
emotions([{{{", ".join(fields)}}}])
```

`AutoModelForTokenClassification` and `AutoProcessor` with `trust_remote_code=True` need transformers and PyTorch, not
amuse-kernels; the folder has the code. With amuse-kernels installed, `import amuse.hf` runs the same model on its fused
kernels, without remote code.
{graph}
## Inputs

{inputs}

An utterance may lack any of them, but a dialogue not all of them.{unread}

## Data

Trained on data of the kind `{data.dataset}`, seed {config.train.seed}. Data are not part of this folder.

## Scores

Test split:

{measured}

Validation split, on which the epoch was chosen, so that these scores are optimistic:

```text
{validation}
```

## Limits

- It learned what annotators of its training data thought people expressed, which is not what people feel. Nothing is
  known about other languages, cultures, ages, accents or rooms.
- Speakers that are in both training and test data make scores look better.
- Probabilities are calibrated at best on validation data from the same source.
- **It must not be used for decisions about people**, nor at work or in education, nor to detect lies, intent or
  illness, nor on people who have not agreed.
"""
