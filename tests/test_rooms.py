"""Imports point one way, read off the source: no room imports one above it, no component's room another's."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "orpo_exp"
# from the bottom up; what stands in one line does not import what stands beside it
FLOORS = (
    ("schema", "files", "columns", "pair_tables", "signals", "metrics", "versions"),
    ("registry", "types", "quantized"),
    ("scoring",),
    ("adapters", "data", "layouts", "losses", "models", "optimizers", "plugins", "tracking"),
    ("training",),
    ("config",),
    ("runs",),
    ("preparing", "export", "colossalchat", "pages"),
    ("experiment",),
    ("sweeps",),
    ("launchers",),
    ("composition",),
    ("user_errors", "help_page"),
    ("planning",),
    ("cli", "evaluate"),
    ("api",),
    ("__main__", "__init__"),
)
# A command that lies in a room, for its name's sake, and is imported by nobody, stands above all.
COMMANDS = {Path("data/inspect.py"): "__main__"}
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def rooms_imported(source: str) -> set[str]:
    """The rooms that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "orpo_exp":
            below = [node.module] if "." in node.module else [f"{node.module}.{name.name}" for name in node.names]
            found |= {module.split(".")[1] for module in below}
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("orpo_exp.")}
    return found


def test_every_room_has_its_floor():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms == set(FLOOR_OF)


def test_no_room_imports_one_above_or_beside_it():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        place = file.relative_to(PACKAGE)
        room = COMMANDS.get(place, place.parts[0].removesuffix(".py"))
        for other in rooms_imported(file.read_text()) - {room}:
            if FLOOR_OF[other] >= FLOOR_OF[room]:
                wrong.append(f"{file.relative_to(PACKAGE)} imports {other}")
    assert not wrong


def test_an_arrow_that_runs_up_would_be_seen():
    assert rooms_imported("def f():\n    from orpo_exp import sweeps\n    import orpo_exp.cli") == {"sweeps", "cli"}
