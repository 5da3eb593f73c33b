"""Explanations of predictions: words, voice, picture, modalities and the rest of the dialogue."""

from amuse.explain.explanation import ExplainOptions, Explanation, explain
from amuse.explain.fidelity import Fidelity
from amuse.explain.groups import Group, feature_groups
from amuse.explain.pictures import Pictures, Regions
from amuse.explain.sentences import Sentence

__all__ = [
    "ExplainOptions",
    "Explanation",
    "Fidelity",
    "Group",
    "Pictures",
    "Regions",
    "Sentence",
    "explain",
    "feature_groups",
]
