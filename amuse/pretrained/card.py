"""The model card of a run that was trained on this machine."""

from collections.abc import Mapping, Sequence

import torch

from amuse.evaluation.metrics import Metrics, RegressionMetrics
from amuse.pretrained.sources import Published
from amuse_kernels import __version__

CARD_FILE = "README.md"


def model_card(
    name: str,
    config: str,
    files: Mapping[str, Published],
    overrides: Sequence[str],
    metrics: Metrics | RegressionMetrics,
) -> str:
    """Markdown: training data, scores, and prohibited uses."""
    settings = f"`{config}.yaml`" + (f" with {', '.join(f'`{each}`' for each in overrides)}" if overrides else "")
    origins = "\n".join(
        f"- `{file}`: {each.repository}, revision {each.revision}, SHA-256 {each.sha256}"
        for file, each in files.items()
    )
    return f"""# {name}: emotions from words

Trained on this machine by `amuse pretrained {name}` with amuse {__version__}, torch {torch.__version__} and {settings}.
It reads words, who says them and what was said before; it neither hears nor sees.

## Data

{origins}

MELD (Poria et al. 2019) has scripted English lines of a television comedy, labelled by three people each; its licence
is GPL-3.0.

## Test split

```text
{metrics.report()}
```

## Use

For trying things out, and for research. It says which of seven emotions annotators would have named, and is wrong about
four times in ten on its own test data, more often on recordings of real conversations, whose words are recognised by
machine. It knows English alone. **It must not be used for decisions about people**, at work, in education, or without
their agreement.
"""
