"""`amuse pretrained`: a run in the user's cache, which `predict`, `explain` and `demo` use if no run is named."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from amuse.config import Config
from amuse.encoders.text import default_cache_dir
from amuse.evaluation.load import load_run
from amuse.evaluation.metrics import Metrics, RegressionMetrics
from amuse.evaluation.predict import evaluate
from amuse.files import write_text
from amuse.pretrained import sources
from amuse.pretrained.card import CARD_FILE, model_card
from amuse.training.train import train


@dataclass(frozen=True)
class Recipe:
    """A pretrained model: a configuration from the package, and its training data."""

    config: str
    dataset: str
    files: Mapping[str, sources.Published]


RECIPES = {"meld": Recipe("meld", "meld", sources.MELD)}
"""In order of preference when no run is named."""


def find(name: str | None = None) -> Path:
    """The folder of a pretrained run.

    Args:
        name: One of `RECIPES`; None = the first one that exists.

    Raises:
        FileNotFoundError: There is none; says which command makes it.
        ValueError: An unknown name.
    """
    names = list(RECIPES) if name is None else [_known(name)]
    for each in names:
        if (_folder(each) / CARD_FILE).is_file():
            return _folder(each)
    raise FileNotFoundError(
        f"no run is named and none is pretrained; amuse pretrained {names[0]} trains one in a few minutes"
    )


def pretrain(
    name: str, data: Path | None = None, overrides: tuple[str, ...] = (), *, progress: bool = True
) -> tuple[Path, Metrics | RegressionMetrics | None]:
    """Fetch the data, train, test and keep the run with a model card; an interrupted training is resumed.

    Args:
        name: One of `RECIPES`.
        data: Folder of the data; None fetches them from their authors into the cache.
        overrides: Settings that replace the recipe's, such as `"train.epochs=1"`; the card lists them.
        progress: Show progress bars.

    Returns:
        Its folder, and its scores on the test split; None if it existed already.

    Raises:
        FileNotFoundError, ValueError: The data are unavailable, or are not those of the recipe.
        ImportError: The text encoder is not installed.
    """
    recipe = RECIPES[_known(name)]
    folder = _folder(name)
    if (folder / CARD_FILE).is_file():
        return folder, None
    if data is None:
        data = default_cache_dir() / "data" / name
        sources.fetch(recipe.files, data)
    else:
        sources.verify(recipe.files, data)
    settings = [f"data.dataset={recipe.dataset}", f"data.path={data.resolve()}", *overrides]
    unfinished = folder.with_name(f"{name}.unfinished")
    config = Config.load(recipe.config, settings)
    try:
        train(config, unfinished, resume=True, progress=progress)
    except ValueError:
        if not unfinished.exists():
            raise
        shutil.rmtree(unfinished)  # begun with other settings, or damaged
        train(config, unfinished, progress=progress)
    model, test, _ = load_run(unfinished, "test")
    metrics = evaluate(model, test)
    write_text(model_card(name, recipe.config, recipe.files, overrides, metrics), unfinished / CARD_FILE)
    unfinished.rename(folder)
    return folder, metrics


def _folder(name: str) -> Path:
    return default_cache_dir() / "pretrained" / name


def _known(name: str) -> str:
    if name not in RECIPES:
        raise ValueError(f"name: expected one of {', '.join(RECIPES)}, got {name!r}")
    return name
