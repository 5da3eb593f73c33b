"""Hooks of the site (mkdocs.yml): pages of the repository's root belong to it, links to source files become text."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = ("MODEL_CARD.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)]*)?\)")
PICTURES = (".svg", ".png")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the root, and the pictures outside `docs/` that a page shows."""
    for name in ROOT_PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for page in ("docs/performance.md",):
        for _, _, target, _ in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
            if path.endswith(PICTURES) and not path.startswith("docs/"):
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the repository has them, from the file's place there, become links of the site."""
    name = page.file.src_uri
    place = "" if name in ROOT_PAGES else "docs"

    def on_site(path: str) -> str | None:
        """A path of the repository as the site has it; None for a file that the site does not have."""
        if path.startswith("docs/"):
            return path.removeprefix("docs/")
        return path if path in ROOT_PAGES or path.endswith(PICTURES) else None

    def link(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups()
        if "://" in target:
            return match[0]
        there = on_site(posixpath.normpath(posixpath.join(place, target)))
        return text if there is None else f"{picture}[{text}]({there}{anchor or ''})"

    return LINK.sub(link, markdown)
