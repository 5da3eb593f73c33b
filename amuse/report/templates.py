"""HTML templates of the package: everything that is put into them is escaped, and nothing may be missing."""

from typing import Any


def template(package: str, name: str) -> Any:
    """The Jinja template `name` in the folder of `package`.

    Raises:
        ImportError: Jinja2 is missing.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise ImportError("reports need jinja2: pip install amuse-kernels[explain]") from None
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    return environment.get_template(name)
