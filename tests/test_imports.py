"""The arrows of the design: which package may import which."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "crate_jax"

ALLOWED = {
    "ops": set(),
    "settings": set(),
    "config": {"settings"},
    "recipe": {"config"},
    "layers": {"ops", "sharding"},
    "models": {"ops", "layers", "config"},
    "objectives": {"ops"},
    "optim": {"config"},
    "data": {"config"},
    "sharding": {"config"},
    "interpret": {"ops", "models", "config"},
    "evaluate": {"ops", "config", "interpret"},
    "systems": {"ops", "layers", "config", "models", "objectives", "optim", "interpret"},
    "train": {"config", "sharding"},
    "convert": {"config", "layers", "models", "train"},
}
"""Everything else (main, bench) stands on top and may import all."""

FOREIGN = {"ops": {"jax", "math"}}
FORBIDDEN = {"tensorflow", "torch"}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "crate_jax":
                yield from (f"crate_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def _list_files():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield pytest.param(parts[0], path, id="/".join(parts))


FILES = list(_list_files())


@pytest.mark.parametrize("unit, path", FILES)
def test_imports_go_one_way(unit, path):
    for name in _imports(path):
        top, _, rest = name.partition(".")
        if top == "crate_jax" and unit in ALLOWED:
            target = rest.partition(".")[0]
            assert target == unit or target in ALLOWED[unit], f"{unit} imports {name}"
        elif unit in FOREIGN:
            assert top in FOREIGN[unit] | {"crate_jax"}, f"{unit} imports {name}"


def test_no_file_is_a_drawer():
    for path in PACKAGE.rglob("*.py"):
        assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, path


@pytest.mark.parametrize("unit, path", FILES)
def test_no_other_framework_at_run_time(unit, path):
    tree = ast.parse(path.read_text())
    for node in tree.body:  # an extra may be imported inside a function
        names = [a.name for a in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        tops = {name.partition(".")[0] for name in [*names, module]}
        assert not tops & FORBIDDEN
