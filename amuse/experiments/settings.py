"""Settings to choose from, as the command line writes them: "model.dropout=[0.1, 0.5]"."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict

import yaml

from amuse.config import Config, from_dict, yaml_value


def combinations(choices: Sequence[str]) -> list[list[str]]:
    """All combinations of "section.key=[value, ...]" as lists of overrides; one empty list without choices."""
    options = []
    for choice in choices:
        key, _, text = choice.partition("=")
        values = yaml_value(f"--choose {choice}", text)
        if not isinstance(values, list) or not values:
            raise ValueError(f"--choose {choice}: expected section.key=[value, ...]")
        options.append([f"{key}={json.dumps(value)}" for value in values])
    return [list(settings) for settings in itertools.product(*options)]


def with_settings(config: Config, settings: Sequence[str]) -> Config:
    """The configuration with some keys of model, loss or train changed.

    Raises:
        ValueError: Another section or an unknown key.
    """
    tree = asdict(config)
    for setting in settings:
        place, _, text = setting.partition("=")
        section, _, key = place.partition(".")
        if key not in tree.get(section, {}) or section == "data":
            raise ValueError(f"--choose {place}: expected a key of model, loss or train")
        tree[section][key] = yaml.safe_load(text)
    return from_dict(Config, tree)
