"""Grouped, repeated cross-validation: every dialogue is tested once per grouping, by a model that never saw its group.

Choices are made inside each fold: of the epoch on its validation part, of settings there too or, with
`data.inner_folds`, by a cross-validation of everything outside the test part. The predictions for all folds of a
grouping are pooled into one score; mean and sample deviation are over groupings.
"""

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from amuse.config import Config
from amuse.data.load import load_splits
from amuse.evaluation.metrics import Metrics, RegressionMetrics
from amuse.evaluation.predict import Predictions, score, score_predictions
from amuse.experiments.contender import Contender, Network
from amuse.experiments.search import draw
from amuse.experiments.settings import combinations
from amuse.files import read_json, write_text
from amuse.world import choose_device

SCORES_FILE = "scores.json"
INNER_FOLDS = 4
"""Inner folds of contenders that always choose, such as the penalty of a linear model."""


@dataclass
class FoldScore:
    """One fold: its score on the test part, the numbers of utterances, and the settings chosen inside."""

    grouping: int
    fold: int
    score: float  # weighted F1 in per cent, or Pearson r
    train: int
    test: int
    chosen: list[str] = field(default_factory=list)
    training: float | None = None  # the same model's score on its training part: memorised, if far higher


LabelledUtterance = tuple[str, str, int | float | None]
"""Ids of dialogue and utterance, label."""


@dataclass(frozen=True)
class Origin:
    """What a score was measured with; scores are only paired where all of it agrees.

    Attributes:
        seed: Of the training.
        grouping: `data.grouping`; None on a fixed split.
        digest: SHA-256 of the ids and labels of the test utterances, fold by fold.
    """

    seed: int
    grouping: int | None
    digest: str

    @classmethod
    def of(cls, seed: int, grouping: int | None, parts: Sequence[Sequence[LabelledUtterance]]) -> "Origin":
        """With the utterances of the test part, or of the test parts of all folds."""
        return cls(seed, grouping, hashlib.sha256(json.dumps(parts).encode()).hexdigest())


@dataclass
class CrossValidation:
    """All folds of all groupings, and the scores of the pooled predictions per grouping.

    Of `amuse repeat` on a fixed split: no folds, and the scores per seed.
    """

    measure: str  # "weighted F1" | "Pearson r"
    second: str  # "accuracy" | "MAE"
    folds: list[FoldScore]
    pooled: list[tuple[float, float]]  # per grouping, or per seed: measure, second
    tested: list[Origin] = field(default_factory=list)  # as `pooled`; empty in files of earlier versions

    def to_markdown(self) -> str:
        """Groupings as rows, their mean and sample deviation last; then how often each setting was chosen."""
        lines = [f"| | {self.measure} | {self.second} |", "|---|---|---|"]
        lines += [f"| grouping {i} | {self._text(a)} | {self._text(b)} |" for i, (a, b) in enumerate(self.pooled)]
        means = [self._mean([row[column] for row in self.pooled]) for column in range(2)]
        lines.append(f"| mean | {' | '.join(means)} |")
        chosen = [tuple(fold.chosen) for fold in self.folds if fold.chosen]
        if chosen:
            lines += ["", "| chosen inside | folds |", "|---|---|"]
            lines += [f"| {', '.join(settings)} | {chosen.count(settings)} |" for settings in dict.fromkeys(chosen)]
        return "\n".join(lines)

    def _text(self, value: float) -> str:
        return f"{value:.2f}" if self.measure == "weighted F1" else f"{value:.3f}"

    def _mean(self, values: list[float]) -> str:
        text = self._text(statistics.fmean(values))
        return text if len(values) == 1 else f"{text} ± {self._text(statistics.stdev(values))}"


def cross_validate(
    config: Config,
    out: Path,
    groupings: int = 5,
    choices: Sequence[str] = (),
    progress: bool = True,
    *,
    trials: int = 1,
    trained: Contender | None = None,
) -> CrossValidation:
    """Train and test every fold of every grouping; writes `scores.json` into `out`.

    Args:
        config: With `data.folds` and `data.groups`; grouping g adds g to `data.grouping` and `train.seed`.
        out: Takes one folder per fold; finished folds are kept, interrupted ones resume.
        groupings: Number of assignments of groups to folds.
        choices: Settings to choose from in each fold, such as "model.dropout=[0.1, 0.5]"; all combinations are
            trained, and the one with the best score inside the fold is tested.
        progress: Print which fold is trained.
        trials: Instead of `choices`, settings that are drawn at random, the same for everyone
            (`amuse.experiments.search`).
        trained: What is trained; None = AMuSE, once per fold.

    Raises:
        ValueError: No folds, no grouping, a choice that is not a list, choices for a contender that has its own,
            or groups that cannot be divided into folds.
    """
    if config.data.folds < 2:
        raise ValueError(f"data.folds: expected at least 2, got {config.data.folds}")
    if groupings < 1:
        raise ValueError(f"groupings: expected at least 1, got {groupings}")
    trained = trained or Network()
    own = trained.candidates
    sources = (trials > 1) + bool(choices) + (len(own) > 1)
    if trials < 1 or sources > 1:
        raise ValueError(
            f"trials, choices: expected one way to candidates, got {trials} trials, {len(choices)} choices, and "
            f"{len(own)} of the contender itself"
        )
    candidates = [draw(number) for number in range(trials)] if trials > 1 else combinations(choices)
    if len(own) > 1:
        candidates = own
        config = replace(config, data=replace(config.data, inner_folds=config.data.inner_folds or INNER_FOLDS))
    folds, pooled, tested = [], [], []
    for grouping in range(groupings):
        parts = []
        for fold in range(config.data.folds):
            if progress:
                print(f"--- grouping {grouping}, fold {fold}", flush=True)
            place = out / f"grouping{grouping}" / f"fold{fold}"
            in_fold = replace(
                config,
                data=replace(config.data, fold=fold, grouping=config.data.grouping + grouping),
                train=replace(config.train, seed=config.train.seed + grouping),
            )
            predictions, names, result = _run_fold(in_fold, place, candidates, trained)
            result.grouping, result.fold = grouping, fold
            parts.append(predictions)
            folds.append(result)
        pooled.append(_headline(score_predictions(_joined(parts), names)))
        tested.append(
            Origin.of(config.train.seed + grouping, config.data.grouping + grouping, [_utterances(p) for p in parts])
        )
    kind = ("Pearson r", "MAE") if names is None else ("weighted F1", "accuracy")
    done = CrossValidation(*kind, folds, pooled, tested)
    write_scores(done, out)
    return done


def write_scores(scores: CrossValidation, folder: Path) -> None:
    """Write `scores.json` into a folder, which is made if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(asdict(scores), indent=2), folder / SCORES_FILE)


def read_scores(folder: Path) -> CrossValidation:
    """The scores that `amuse repeat` wrote.

    Raises:
        FileNotFoundError: No finished runs in the folder.
        ValueError: A damaged file.
    """
    path = folder / SCORES_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: expected the folder of finished runs, {SCORES_FILE} is missing")
    tree = read_json(path)
    try:
        folds = [FoldScore(**fold) for fold in tree["folds"]]
        tested = [Origin(**each) for each in tree.get("tested", [])]
        return CrossValidation(tree["measure"], tree["second"], folds, [(a, b) for a, b in tree["pooled"]], tested)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the scores of amuse repeat: {error!r}") from None


def _run_fold(
    config: Config, place: Path, candidates: list[list[str]], trained: Contender
) -> tuple[Predictions, Any, FoldScore]:
    """Predictions for the test part, by the candidate that is best inside the fold."""
    whole = replace(config, data=replace(config.data, inner_folds=0, inner_fold=0))
    splits = load_splits(whole.data, progress=False, device=choose_device(config.train.device))
    folders = [place] if len(candidates) == 1 else [place / f"choice{i}" for i in range(len(candidates))]
    number = 0
    if len(candidates) > 1 and config.data.inner_folds:
        values = _inner_scores(config, candidates, folders, trained)
        number = values.index(max(values))
    elif len(candidates) > 1:
        values = []
        for settings, folder in zip(candidates, folders, strict=True):
            predictor = trained.fit(splits, whole, settings, folder, final=False)
            values.append(score(score_predictions(predictor(splits.valid), splits.valid.label_names)))
        number = values.index(max(values))
    predictor = trained.fit(splits, whole, candidates[number], folders[number], final=True)
    predictions, names = predictor(splits.test), splits.test.label_names
    value, training = (_headline(score_predictions(p, names))[0] for p in (predictions, predictor(splits.train)))
    counts = splits.train.num_utterances + splits.valid.num_utterances, splits.test.num_utterances
    return predictions, names, FoldScore(0, 0, value, *counts, candidates[number], training)


def _inner_scores(config: Config, candidates: list[list[str]], folders: list[Path], trained: Contender) -> list[float]:
    """The pooled score of every candidate in the inner folds, none of which has the fold's test part."""
    found: list[list[Predictions]] = [[] for _ in candidates]
    for inner in range(config.data.inner_folds):
        data = replace(config.data, inner_fold=inner)
        splits = load_splits(data, progress=False, device=choose_device(config.train.device))
        in_fold = replace(config, data=data)
        for settings, folder, parts in zip(candidates, folders, found, strict=True):
            predictor = trained.fit(splits, in_fold, settings, folder / f"inner{inner}", final=False)
            parts.append(predictor(splits.test))
    return [_headline(score_predictions(_joined(parts), splits.test.label_names))[0] for parts in found]


def _headline(metrics: Metrics | RegressionMetrics) -> tuple[float, float]:
    if isinstance(metrics, Metrics):
        return 100 * metrics.weighted_f1, 100 * metrics.accuracy
    return metrics.pearson, metrics.mae


def _utterances(predictions: Predictions) -> list[LabelledUtterance]:
    assert predictions.labels is not None  # _joined has checked it
    labels = predictions.labels.tolist()
    return [(*ids, label) for ids, label in zip(predictions.ids, labels, strict=True)]


def _joined(parts: Sequence[Predictions]) -> Predictions:
    labels = [part.labels for part in parts if part.labels is not None]
    if len(labels) < len(parts):
        raise ValueError("data: expected labels in every fold, found a fold without any")
    ids = [name for part in parts for name in part.ids]
    return Predictions(torch.cat([part.logits for part in parts]), torch.cat(labels), ids)
