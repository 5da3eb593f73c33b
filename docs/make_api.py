"""Writes docs/api.md from signatures and docstrings: `python docs/make_api.py`; a test checks that it is up to date."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("api.md")
PUBLIC = {
    "amuse_kernels": [
        "p2c_attention",
        "p2c_attention_weights",
        "adaptive_fusion",
        "interpolation_coefficients",
        "BackendUnavailableError",
    ],
    "amuse_kernels.nn": ["PeripheralCentralAttention", "AdaptiveFusion"],
    "amuse_kernels.info": ["info"],
    "amuse.config": ["Config", "ModelConfig"],
    "amuse.data.conversation": ["Utterance", "Dialogue", "Conversations"],
    "amuse.data.load": ["load_splits", "load_split", "Splits"],
    "amuse.data.meld": ["read_meld"],
    "amuse.data.mosi": ["read_mosi"],
    "amuse.data.iemocap": ["read_iemocap"],
    "amuse.data.folder": ["read_folder"],
    "amuse.data.prepared": ["read_prepared"],
    "amuse.model.amuse": ["Amuse"],
    "amuse.model.output": ["Output"],
    "amuse.training.train": ["train", "train_on"],
    "amuse.evaluation.load": ["load_run", "load_best"],
    "amuse.evaluation.predict": ["predict", "evaluate", "Predictions"],
    "amuse.inference.streaming": ["StreamingSession"],
    "amuse.explain": ["explain"],
}
SECTION = re.compile(r"^(Args|Returns|Raises|Attributes):$", re.MULTILINE)


def render() -> str:
    """The whole page."""
    lines = [
        "# API",
        "",
        "Generated from the docstrings by `python docs/make_api.py`. In shapes, B is the batch, H the heads, Lq the",
        "queries, P the sources of Lp keys each, D the head dim, M the modalities, d a width.",
    ]
    for module_name, names in PUBLIC.items():
        module = importlib.import_module(module_name)
        lines += ["", f"## {module_name}", "", paragraph(inspect.getdoc(module) or "")]
        for name in names:
            lines += ["", f"### {name}", "", *describe(name, getattr(module, name))]
    return "\n".join(lines) + "\n"


def describe(name: str, thing: Any) -> list[str]:
    documentation = inspect.getdoc(thing) or ""
    lines = ["```text", signature(name, thing), "```", "", *sections(documentation)]
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        for method_name, method in vars(thing).items():
            function = method.__func__ if isinstance(method, classmethod) else method
            if method_name.startswith("_") or not inspect.isfunction(function) or not inspect.getdoc(function):
                continue
            lines += ["", f"#### {name}.{method_name}", "", "```text", signature(method_name, function), "```", ""]
            lines += sections(inspect.getdoc(function) or "")
    return lines


def signature(name: str, thing: Any) -> str:
    """As it stands in the code, one parameter a line where one line is too short."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return f"{name}({', '.join(base.__name__ for base in thing.__bases__)})"
    found = inspect.signature(thing)
    parameters: list[str] = []
    named_only = False
    for parameter in found.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not named_only:
            named_only = True
            parameters.append("*")
        text = parameter.name + (
            f": {annotation(parameter.annotation)}" if parameter.annotation is not parameter.empty else ""
        )
        if "factory" in repr(parameter.default):
            text += " = ..."
        elif parameter.default is not parameter.empty:
            text += f" = {parameter.default!r}"
        parameters.append(text)
    result = found.return_annotation
    arrow = "" if result in (found.empty, None, "None") else f" -> {annotation(result)}"
    line = f"{name}({', '.join(parameters)}){arrow}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parameters) + f",\n){arrow}"


def annotation(value: Any) -> str:
    """Without the names of modules."""
    text = value if isinstance(value, str) else inspect.formatannotation(value)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(\w+)", r"\1", text)


def sections(documentation: str) -> list[str]:
    """A docstring as Markdown: text as it is, its sections as bold words with lists."""
    pieces = SECTION.split(documentation)
    lines = [pieces[0].rstrip()]
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        head, _, rest = inspect.cleandoc(body).partition("\n\n")
        lines += ["", f"**{title}**", "", *entries(head), *(["", rest.rstrip()] if rest else [])]
    return lines


def entries(body: str) -> list[str]:
    """`name: text` with its indented lines as one list item; text without a name stays a paragraph."""
    items: list[str] = []
    for line in body.splitlines():
        if line.startswith(" ") and items:
            items[-1] += f" {line.strip()}"
        else:
            items.append(line.strip())
    return [re.sub(r"^([\w, ]+): ", r"- `\1`: ", item) for item in items]


def paragraph(text: str) -> str:
    return text.partition("\n\n")[0]


if __name__ == "__main__":
    TARGET.write_text(render())
