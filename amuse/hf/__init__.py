"""AMuSE for transformers: configuration, models, processor and pipeline; p2c_attention as an attention.

Importing this imports transformers, which takes seconds; nothing else of the package imports it.
"""

try:
    import transformers  # noqa: F401
except ImportError:
    raise ImportError("amuse.hf needs transformers: pip install amuse-kernels[hf]") from None

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForTokenClassification,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from amuse.hf.attention import P2C
from amuse.hf.configuration import AmuseConfig
from amuse.hf.export import export_run
from amuse.hf.modeling import AmuseForUtteranceClassification, AmuseModel, AmuseModelOutput, AmuseUtteranceOutput
from amuse.hf.pipeline import TASK, EmotionInConversationPipeline
from amuse.hf.processing import AmuseProcessor
from amuse.hf.scores import utterance_scores

AutoConfig.register(AmuseConfig.model_type, AmuseConfig)
AutoModel.register(AmuseConfig, AmuseModel)
# utterances are to a dialogue what tokens are to a sentence
AutoModelForTokenClassification.register(AmuseConfig, AmuseForUtteranceClassification)
AutoProcessor.register(AmuseConfig, AmuseProcessor)
AutoFeatureExtractor.register(AmuseConfig, AmuseProcessor)  # as which a pipeline loads it
PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=EmotionInConversationPipeline, pt_model=AutoModelForTokenClassification
)

__all__ = [
    "P2C",
    "AmuseConfig",
    "AmuseForUtteranceClassification",
    "AmuseModel",
    "AmuseModelOutput",
    "AmuseProcessor",
    "AmuseUtteranceOutput",
    "EmotionInConversationPipeline",
    "export_run",
    "utterance_scores",
]
