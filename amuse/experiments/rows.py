"""The rows of the ablation tables: the paper's Tables I to V beside its numbers, and three of ours."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from amuse.config import Config
from amuse.experiments.comparison import only_modalities

TABLES = {
    "I": "modalities and stages (the paper on MELD)",
    "II": "modalities and stages (the paper on IEMOCAP)",
    "III": "coefficients of the fusion",
    "IV": "gamma of the focal loss",
    "V": "layers of the Multimodal Attention Network",
    "losses": "contrast between modalities (Eq. 3 and 4), focal loss (Eq. 5)",
    "attention": "normalisation of Eq. 1's attention, gates of its sources",
    "overfitting": "guards against overfitting",
}
PAPER_TABLES = ("I", "III", "IV", "V")

# weighted F1 of the paper in per cent: MELD, IEMOCAP
UNIMODAL_AND_CONCATENATION = {
    "T": (60.41, 55.26),
    "A": (35.37, 34.17),
    "V": (46.15, 42.60),
    "T+A": (62.65, 57.27),
    "T+V": (61.58, 58.15),
    "A+V": (48.10, 47.82),
    "T+A+V": (63.56, 61.17),
}
MAN_AND_CONCATENATION = (69.92, 71.47)
AMUSE = (71.32, 73.91)
GAMMA = {0.5: (70.71, 71.46), 0.75: (71.08, 73.47), 1.0: AMUSE, 1.25: (70.97, 73.12)}
LAYERS = {1: (65.37, 68.14), 3: (69.26, 70.98), 4: AMUSE, 5: (71.03, 72.57)}
LETTERS = {"text": "T", "audio": "A", "video": "V"}
CHANCE = 0.2
"""Probability of modality dropout and swap noise in the table "overfitting"."""


@dataclass
class Variant:
    """A row of a table: its changes, and the paper's weighted F1, if it has one."""

    table: str
    name: str
    changes: dict[str, Any]  # "section.key" -> value
    paper: tuple[float, float] | None = None  # MELD, IEMOCAP
    modalities: list[str] | None = None  # None = all


def rows_of(table: str, modalities: Sequence[str], regression: bool = False) -> list[Variant]:
    """The rows of one table for a data set.

    Args:
        table: One of `TABLES`.
        modalities: The data's.
        regression: Leaves out what needs classes.
    """
    if table in ("I", "II"):
        return _stages(table, list(modalities))
    if table == "III":
        return _coefficients(regression)
    if table == "IV":
        return [Variant(table, f"γ = {gamma:g}", {"loss.gamma": gamma}, paper) for gamma, paper in GAMMA.items()]
    if table == "V":
        return [
            Variant(table, f"{n} layer{'s' * (n > 1)}", {"model.man_layers": n}, paper) for n, paper in LAYERS.items()
        ]
    changes: dict[str, dict[str, Any]]
    if table == "losses":
        changes = {
            "no contrast": {"loss.contrastive_kind": "none"},
            "NCE": {"loss.contrastive_kind": "nce"},
            "InfoNCE": {"loss.contrastive_kind": "infonce"},
        }
        if not regression:
            changes |= {"cross-entropy": {"loss.gamma": 0.0}, "focal loss, γ = 1": {"loss.gamma": 1.0}}
    elif table == "attention":
        changes = {
            "one softmax per source": {"model.man_normalization": "per_source"},
            "one softmax over all sources": {"model.man_normalization": "joint"},
            "mean gates": {"model.man_gate": "mean"},
            "learned gates": {"model.man_gate": "learned"},
            "gates from the input": {"model.man_gate": "input"},
        }
    else:
        everyone = dict.fromkeys(modalities, CHANCE)
        changes = {
            "modality dropout": {"model.modality_dropout": everyone},
            "swap noise": {"model.modality_swap": everyone},
            "mixup": {"train.mixup": 0.4},
            "no average of the weights": {"train.ema": 0.0},
            "average of the weights": {"train.ema": 0.98},
            "no dropout": {"model.dropout": 0.0, "model.input_dropout": 0.0},
        }
        if not regression:
            changes["label smoothing"] = {"loss.label_smoothing": 0.1}
    return [Variant(table, name, change) for name, change in changes.items()]


def _stages(table: str, modalities: list[str]) -> list[Variant]:
    concatenation = {"model.man": False, "model.fusion": "concat"}
    rows = []
    for size in range(1, len(modalities) + 1):
        for chosen in combinations(modalities, size):
            name = "+".join(chosen) + (", concatenation" if size > 1 else " alone")
            letters = "+".join(LETTERS.get(modality, "?") for modality in chosen)
            rows.append(Variant(table, name, concatenation, UNIMODAL_AND_CONCATENATION.get(letters), list(chosen)))
    if len(modalities) > 1:
        rows.append(Variant(table, "MAN + concatenation", {"model.fusion": "concat"}, MAN_AND_CONCATENATION))
        rows.append(Variant(table, "AMuSE", {}, AMUSE))
    return rows


def _coefficients(regression: bool) -> list[Variant]:
    """The rows of Table III; the paper's third is "learned", which the text computes by Eq. 6."""
    plain = {"model.gate_teacher": False}
    rows = [
        Variant("III", "random α", {"model.fusion": "random", **plain}, (70.86, 72.07)),
        Variant("III", "equal α", {"model.fusion": "equal", **plain}, (71.10, 72.89)),
        Variant("III", "gate", {"model.fusion": "learned", **plain}, AMUSE),
    ]
    if not regression:
        rows += [
            Variant("III", "gate with teacher", {"model.fusion": "learned", "model.gate_teacher": True}),
            Variant("III", "Eq. 6, predicted label", {"model.fusion": "closed_form", **plain}),
            Variant("III", "chain", {"model.fusion": "chain", **plain}),
        ]
    return rows


def changed(config: Config, row: Variant, seed: int) -> Config:
    """The configuration of one run of a row.

    Raises:
        ValueError: A change that the configuration does not allow.
    """
    config = copy.deepcopy(config)
    sections: dict[str, dict[str, Any]] = {}
    for place, value in {**row.changes, "train.seed": seed}.items():
        section, key = place.split(".")
        sections.setdefault(section, {})[key] = value
    for section, values in sections.items():  # keys that need each other change together
        setattr(config, section, dataclasses.replace(getattr(config, section), **values))
    return config if row.modalities is None else only_modalities(config, row.modalities)
