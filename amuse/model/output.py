"""The model's output."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Output:
    """The model's outputs for U utterances.

    Attributes:
        logits: `(U, C)`, or `(U, 1)` for regression.
        modality_logits: `(U, M, C)`, of each modality's Central network; meaningless where absent.
        descriptors: `(U, M, d)`, the cross-attended descriptors f_m^CA; 0 where absent.
        alpha: `(U, M, M)` or element-wise `(U, M, M, d)` interpolation coefficients; None with fusion "concat" and
            "chain".
        present: bool `(U, M)`, which modalities took part.
        teacher: `(U, M, M, d)`, Eq. 6 as a teacher of alpha; in training with `gate_teacher` only.
        voices: `(U, d)` of length 1, alike for utterances of one speaker; with `speaker_head` only.
        context: `(U, width)`, the utterance in its dialogue: what the classifier reads.
    """

    logits: Tensor
    modality_logits: Tensor
    descriptors: Tensor
    alpha: Tensor | None
    present: Tensor
    teacher: Tensor | None = None
    voices: Tensor | None = None
    context: Tensor | None = None
