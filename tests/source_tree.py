"""The project's own modules as syntax trees, for the tests of its structure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("app", "engine", "training")


@dataclass(frozen=True)
class Import:
    """One import statement's target: `names` are what a `from` import takes out of `module`."""

    module: str
    names: tuple[str, ...]
    line: int
    is_late: bool
    level: int


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path

    @property
    def relative(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), filename=str(self.path))

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """All imports that run: those for type checkers only are left out."""
        return tuple(_imports(self.tree, is_late=False))


def _imports(node: ast.AST, *, is_late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(alias.name, (), child.lineno, is_late, 0)
            case ast.ImportFrom(module=module, names=names, level=level):
                taken = tuple(alias.name for alias in names)
                yield Import(module or "", taken, child.lineno, is_late, level)
            case ast.If(test=test) if "TYPE_CHECKING" in ast.unparse(test):
                for statement in child.orelse:
                    yield from _imports(statement, is_late=is_late)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                yield from _imports(child, is_late=True)
            case _:
                yield from _imports(child, is_late=is_late)


def project_modules() -> dict[str, Module]:
    """Every module of the three packages by its dotted name."""
    modules = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = Module(name, path)
    return modules


MODULES = project_modules()
ENTRY_POINT = Module("app.py", ROOT / "app.py")
BOOTSTRAP = Module("tools.bootstrap", ROOT / "tools" / "bootstrap.py")


def source_files() -> list[Module]:
    """Every source file of the project that is not a test."""
    return [*MODULES.values(), BOOTSTRAP, *([ENTRY_POINT] if ENTRY_POINT.path.exists() else [])]


def imported_modules(module: Module, *, late: bool) -> set[str]:
    """The dotted names that a module imports; `from package import module` names the module."""
    found = set()
    for item in module.imports:
        if item.is_late and not late:
            continue
        submodules = {f"{item.module}.{name}" for name in item.names} & MODULES.keys()
        found |= submodules or {item.module}
        # A package's own names come from its __init__, beside any submodule taken from it.
        if len(submodules) < len(item.names):
            found.add(item.module)
    return found


def loaded_with(name: str) -> set[str]:
    """Every module, of the project or foreign, that importing a project module loads.

    Follows imports at module level only, through parent packages as Python does.
    """
    seen: set[str] = set()
    pending = [name]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in MODULES:
            pending.extend(imported_modules(MODULES[current], late=False))
            parent = current.rpartition(".")[0]
            pending.extend([parent] if parent else [])
    return seen


def top_level(name: str) -> str:
    """The first part of a dotted name."""
    return name.partition(".")[0]
