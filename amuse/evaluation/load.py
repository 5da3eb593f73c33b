"""Reads trained runs from their folders."""

from pathlib import Path

from amuse.config import Config
from amuse.data.conversation import Conversations
from amuse.data.load import load_split
from amuse.data.standardize import Standardizer
from amuse.files import BEST, CONFIG_FILE, STANDARDIZER_FILE, load_tensors
from amuse.model.amuse import Amuse
from amuse.world import choose_device


def load_best(folder: str | Path) -> tuple[Amuse, Standardizer | None, Config]:
    """The best model of a run, on the run's device, with the standardizer of its features and its configuration.

    Raises:
        FileNotFoundError: No such run.
        ValueError: A damaged checkpoint.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder}: expected the folder of a run, {CONFIG_FILE} is missing")
    try:
        config = Config.load(folder / CONFIG_FILE)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from None
    model = Amuse.from_pretrained(folder / BEST).to(choose_device(config.train.device))
    file = folder / BEST / STANDARDIZER_FILE
    if not file.is_file():
        return model, None, config
    try:
        return model, Standardizer.from_state_dict(load_tensors(file)), config
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def load_run(folder: str | Path, split: str) -> tuple[Amuse, Conversations, Config]:
    """The best model of a run, one split of its data, prepared as in training, and its configuration.

    Raises:
        FileNotFoundError: No such run or no such data.
        ValueError: A damaged checkpoint or an unknown split.
    """
    model, standardizer, config = load_best(folder)
    return model, load_as_read(model, standardizer, config, split), config


def load_as_read(model: Amuse, standardizer: Standardizer | None, config: Config, split: str) -> Conversations:
    """One split of a run's data with features as its model reads them; the arguments are what `load_best` gives.

    Raises:
        FileNotFoundError: No such data.
        ValueError: An unknown split.
    """
    conversations = load_split(config.data, split, device=next(model.parameters()).device)
    return conversations if standardizer is None else standardizer.apply(conversations)
