"""The layout: rooms on six floors, imports one way down, files and functions of a readable size."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A room is a module or a folder directly under posemodel/, or a folder beside it. From the top
# floor down; a room imports rooms of lower floors only. CONTRIBUTING.md says what belongs where.
FLOORS = (
    ("commands", "train evaluate export doctor transfer demo study reid reproduce benchmarks"),
    ("engine and inference", "engine inference"),
    ("evaluation and build", "evaluation build"),
    ("data, losses, networks", "data losses baselines model"),
    ("poses, config, flow", "poses config flow"),
    ("ground", "runtime mannequins pictures pose_kernels"),
)
FLOOR = {room: floor for floor, (_, rooms) in enumerate(FLOORS) for room in rooms.split()}


def python_files() -> list[Path]:
    return sorted(path for folder in ("posemodel", "pose_kernels", "benchmarks")
                  for path in (ROOT / folder).rglob("*.py"))


def room_of(module: str) -> str | None:
    """The room that a dotted module lies in; None for what is no room: other packages, and
    `posemodel` itself, which is a version and no more."""
    first, _, rest = module.partition(".")
    room = rest.partition(".")[0] if first == "posemodel" else first
    return room if room in FLOOR else None


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, at whatever depth it stands."""
    package = path.relative_to(ROOT).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            found += [(node.lineno, f"{module}.{name.name}") for name in node.names]
    return found


def broken_rules(path: Path) -> list[str]:
    """What this file imports that it may not, a line for each."""
    name = path.relative_to(ROOT)
    mine = room_of(".".join(name.with_suffix("").parts))
    if mine is None:
        return []
    broken = []
    for line, module in imports_of(path):
        other = room_of(module)
        if other in (None, mine) or FLOOR[other] > FLOOR[mine]:
            continue
        way = "up" if FLOOR[other] < FLOOR[mine] else "across"
        broken.append(
            f"{name}:{line} imports {module}: {way}, from {mine} ({FLOORS[FLOOR[mine]][0]}) to "
            f"{other} ({FLOORS[FLOOR[other]][0]}); a room imports lower floors only")
    return broken


def test_imports_go_down():
    broken = [line for path in python_files() for line in broken_rules(path)]
    assert not broken, "\n".join(broken)


def test_every_room_is_on_a_floor():
    rooms = {path.stem for path in (ROOT / "posemodel").iterdir()
             if path.is_dir() or path.suffix == ".py"} - {"__init__", "__pycache__", "pretrained"}
    assert rooms | {"benchmarks", "pose_kernels"} == FLOOR.keys()
    assert len(FLOOR) + 2 <= 28 and len(FLOORS) <= 6  # csrc and setup.py are rooms too


@pytest.mark.parametrize("line, way", [
    ("from posemodel.engine import trainer", "up"),
    ("def f():\n    import posemodel.train", "up"),
    ("from posemodel.model.warping import WarpingNetwork", "across"),
    ("from posemodel.config import sections", None), ("from .lists import lines", None),
    ("from ..engine import trainer", "up"), ("import torch", None)])
def test_a_forbidden_import_is_found(line, way, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_house.ROOT", tmp_path)
    path = tmp_path / "posemodel" / "data" / "some.py"
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    broken = broken_rules(path)
    assert [f": {way}, from data (data, losses, networks)" in said for said in broken] == \
        [True] * (way is not None)


def source_files() -> list[tuple[Path, int]]:
    endings = {".py": 400, ".cpp": 400, ".h": 400, ".inl": 400, ".cu": 500, ".cuh": 500,
               ".js": 400, ".css": 400, ".html": 400, ".j2": 400, ".md": 400}
    folders = ("posemodel", "pose_kernels", "benchmarks", "csrc", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files += [*ROOT.glob("*.py"), *ROOT.glob("*.md")]
    return [(path, endings[path.suffix]) for path in files if path.suffix in endings]


def test_no_file_is_too_long_to_read():
    long = {str(path.relative_to(ROOT)): lines for path, limit in source_files()
            if (lines := len(path.read_text().splitlines())) > limit}
    assert not long


def test_no_function_is_too_long_to_read():
    long = {f"{path.relative_to(ROOT)}:{node.name}": lines
            for path in [*python_files(), ROOT / "setup.py"]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and (lines := node.end_lineno - node.lineno + 1) > 60}
    assert not long
