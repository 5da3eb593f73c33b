"""The rooms of `amuse` are on floors, and nothing imports from a floor above.

`python -m tests.test_amuse_floors` counts rooms, floors, and arrows: pairs of rooms of which one imports the other.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import amuse

PACKAGE = Path(amuse.__path__[0])
DESIGN = (PACKAGE.parent / "docs" / "design.md").read_text("utf-8")

# from the ground up; docs/design.md says what each room is for
FLOORS = (
    ("errors", "progress", "layout", "world", "cluster"),
    ("files",),
    ("config", "remote"),
    ("encoders",),
    ("data",),
    ("model", "media"),
    ("evaluation", "explain", "speech"),
    ("training", "inference", "onnx"),
    ("report", "hf", "live"),
    ("experiments", "demo", "pretrained"),
    ("examples", "cli"),
    ("amuse", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules(package: Path) -> dict[str, Path]:
    names = {path: ("amuse", *path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in names.items()}


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of `amuse` that a file imports anywhere, in its functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in submodules]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "amuse")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def arrows(package: Path) -> dict[str, set[str]]:
    known = modules(package)
    return {module: set(imports(path, known)) - {module} for module, path in known.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The names of one import circle, or an empty list."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return trail[trail.index(name) :]
        if name in done:
            return []
        found = next((c for other in sorted(edges.get(name, ())) if (c := visit(other, [*trail, name]))), [])
        done.add(name)
        return found

    return next((c for name in sorted(edges) if (c := visit(name, []))), [])


def test_every_room_has_a_floor():
    assert {room(module) for module in modules(PACKAGE)} - {"amuse"} <= set(FLOOR_OF)


def test_nothing_imports_from_a_floor_above_or_from_a_neighbour():
    upward = [
        f"{module} -> {other}"
        for module, others in arrows(PACKAGE).items()
        for other in others
        if room(module) != room(other) and FLOOR_OF[room(other)] >= FLOOR_OF[room(module)]
    ]
    assert not upward


def test_there_is_no_import_circle():
    edges = arrows(PACKAGE)
    # a package's __init__ is read before its modules, so it may name them without a circle
    inner = {module: {o for o in others if not module.startswith(f"{o}.")} for module, others in edges.items()}
    assert not circle(inner)


def test_the_search_finds_circles_and_arrows_in_functions(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    from amuse.b import g\n")
    (tmp_path / "b.py").write_text("import amuse.a\n")
    assert arrows(tmp_path) == {"amuse.a": {"amuse.b"}, "amuse.b": {"amuse.a"}}
    assert sorted(circle(arrows(tmp_path))) == ["amuse.a", "amuse.b"]


def count() -> str:
    pairs = {(room(module), room(other)) for module, others in arrows(PACKAGE).items() for other in others}
    across = {pair for pair in pairs if pair[0] != pair[1] and "amuse" not in pair}
    return f"{len(FLOOR_OF) - 2} rooms, {len(across)} arrows, {len(FLOORS) - 1} floors"


def test_the_design_page_counts_rooms_arrows_and_floors():
    assert f"Now there are {count()}" in DESIGN


def test_the_design_page_has_every_room_on_its_floor():
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", DESIGN, re.MULTILINE)
    named = {int(floor): set(re.findall(r"`(\w+)`", text)) for floor, text in rows}
    for floor, rooms in enumerate(FLOORS[:-1]):
        assert set(rooms) <= named[floor], floor


def test_the_walks_of_a_batch_and_of_a_recording_name_files_that_exist():
    walks = DESIGN[DESIGN.index("**The walk of a batch**") : DESIGN.index("## Decisions")]
    steps = re.findall(r"^\| [^|]+ \| (.*`.*) \|$", walks, re.MULTILINE)
    assert len(steps) == 13
    for step in steps:
        folder = ""
        for name in re.findall(r"`([\w/.]+)`", step):
            places = [PACKAGE / name, PACKAGE / f"{name}.py", PACKAGE / folder / f"{name}.py"]
            assert any(place.is_file() for place in places), name
            folder = str(Path(name).parent) if "/" in name else folder


if __name__ == "__main__":
    print(count())
