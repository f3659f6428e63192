"""Who may import whom, what no module may do, and what the project folder must hold."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from tests.source_tree import (
    MODULES,
    PACKAGES,
    ROOT,
    Module,
    imported_modules,
    loaded_with,
    source_files,
    top_level,
)

MODEL_LIBRARIES = {
    "accelerate",
    "deepspeed",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
}
TORCH_FREE_ROOTS = (
    "engine",
    "engine.comparison",
    "engine.geometry",
    "engine.group",
    "engine.group_io",
    "engine.imaging",
    "engine.request",
    "engine.trace",
    "engine.trace_io",
)
TORCH_FREE = sorted(
    name
    for name in MODULES
    if name in TORCH_FREE_ROOTS or name.startswith("engine.imaging.") or top_level(name) == "app"
)
FORBIDDEN_IMPORTS = {"dill", "joblib", "marshal", "pickle", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec"}

# Packages that an installation may lack, so that they are imported where they are used.
OPTIONAL_PACKAGES = {"datasets", "deepspeed", "peft", "playwright", "spaces", "trl"}
# Modules that parse a command line import late what a command runs: `engine show` opens a
# trace where torch is not installed, and `--help` answers at once.
COMMAND_LINES = {"app.py", "engine/__main__.py", "engine/cli.py", "training/cli.py"}
LATE_IMPORTS: dict[tuple[str, str], str] = {
    ("training/metrics.py", "torch.utils.tensorboard"): (
        "it needs the package tensorboard, which is not among the requirements"
    ),
    ("engine/imaging/opening.py", "engine.imaging.loading"): (
        "the parsers run in a child process: a parent that sandboxes never loads them"
    ),
    ("app/samples.py", "pydicom.data"): (
        "it is asked for the place of sample files only: importing the app loads no parser"
    ),
}

TOP_LEVEL = (
    ".ci/run",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "app.py",
    "app/__init__.py",
    "assets/checkpoints",
    "docs/architecture.md",
    "engine/__init__.py",
    "engine/__main__.py",
    "packages.txt",
    "pyproject.toml",
    "requirements-dev.txt",
    "requirements.txt",
    "tests/e2e/__init__.py",
    "tests/integration/__init__.py",
    "tests/unit/__init__.py",
    "training/__init__.py",
    "training/__main__.py",
    "training/configs",
)


def by_path(modules: list[Module]) -> list[object]:
    return [pytest.param(module, id=module.relative) for module in modules]


every_module = pytest.mark.parametrize("module", by_path(source_files()))


def calls(module: Module) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the source text of what is called."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


# --- import directions --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        pytest.param("app", {"training", *MODEL_LIBRARIES}, id="app"),
        pytest.param("engine", {"app", "gradio", "training"}, id="engine"),
        pytest.param("training", {"app", "gradio"}, id="training"),
    ],
)
def test_a_package_imports_only_what_is_below_it(package: str, forbidden: set[str]) -> None:
    wrong = [
        f"{module.relative} imports {imported}"
        for name, module in MODULES.items()
        if top_level(name) == package
        for imported in sorted(imported_modules(module, late=True))
        if top_level(imported) in forbidden
    ]

    assert wrong == []


@pytest.mark.parametrize("root", TORCH_FREE_ROOTS)
def test_the_torch_free_roots_exist(root: str) -> None:
    assert root in MODULES


@pytest.mark.parametrize("name", TORCH_FREE)
def test_no_torch_free_module_loads_a_model_library(name: str) -> None:
    loaded = {top_level(module) for module in loaded_with(name)}

    assert loaded & MODEL_LIBRARIES == set()


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    edges = {
        name: imported_modules(module, late=False) & MODULES.keys() - {name}
        for name, module in MODULES.items()
    }
    # Modules without imports go first, then those that import only what is gone.
    while free := {name for name, targets in edges.items() if not targets & edges.keys()}:
        for name in free:
            del edges[name]

    assert edges == {}


@every_module
def test_imports_are_absolute(module: Module) -> None:
    assert [item.line for item in module.imports if item.level > 0] == []


@every_module
def test_imports_inside_functions_have_a_listed_reason(module: Module) -> None:
    wrong = [
        f"{module.relative}:{item.line} imports {item.module}"
        for item in module.imports
        if item.is_late
        and module.relative not in COMMAND_LINES
        and top_level(item.module) not in OPTIONAL_PACKAGES
        and (module.relative, item.module) not in LATE_IMPORTS
    ]

    assert wrong == []


def test_every_listed_late_import_is_still_there() -> None:
    present = {
        (module.relative, item.module)
        for module in source_files()
        for item in module.imports
        if item.is_late
    }

    assert LATE_IMPORTS.keys() - present == set()


# --- what no module may do ----------------------------------------------------------------


@every_module
def test_no_module_rebinds_globals(module: Module) -> None:
    lines = [node.lineno for node in ast.walk(module.tree) if isinstance(node, ast.Global)]

    assert lines == []


@every_module
def test_no_module_runs_text_or_unpickles(module: Module) -> None:
    imported = {top_level(item.module) for item in module.imports}
    called = [f"{name} in line {call.lineno}" for call, name in calls(module)]

    assert imported & FORBIDDEN_IMPORTS == set()
    assert [name for name in called if name.split()[0] in FORBIDDEN_CALLS] == []


@every_module
def test_files_are_loaded_without_running_their_content(module: Module) -> None:
    unsafe = [
        f"{name} in line {call.lineno}"
        for call, name in calls(module)
        if (name == "torch.load" and keyword(call, "weights_only") != "True")
        or (name.endswith(".load") and keyword(call, "allow_pickle") not in {None, "False"})
        or name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}
    ]

    assert unsafe == []


# --- what importing does ------------------------------------------------------------------

IMPORT_WITHOUT_MODEL_LIBRARIES = """
    import importlib, sys
    blocked, names = set(sys.argv[1].split(",")), sys.argv[2].split(",")

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in blocked:
                raise ModuleNotFoundError(f"{name} is blocked", name=name)

    sys.meta_path.insert(0, Blocker())
    for name in names:
        importlib.import_module(name)
    assert not blocked & set(sys.modules), blocked & set(sys.modules)
"""

# An audit event counts when project code caused it itself: going outwards from the event, a
# frame of the project comes before one of the import system.
IMPORT_UNDER_AUDIT = """
    import importlib, json, os, sys
    root, names = sys.argv[1], sys.argv[2].split(",")
    for library in sys.argv[3].split(","):
        importlib.import_module(library)
    watched = {"open", "os.putenv", "os.mkdir", "os.remove", "os.rename", "os.listdir",
               "socket.__new__", "socket.connect", "subprocess.Popen", "os.system", "os.fork"}
    folders = tuple(os.path.join(root, package) + os.sep for package in sys.argv[4].split(","))
    seen = []

    def from_project():
        frame = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith("<frozen importlib"):
                return None
            if name.startswith(folders):
                return f"{name[len(root) + 1:]}:{frame.f_lineno}"
            frame = frame.f_back
        return None

    def audit(event, args):
        if event in watched and (place := from_project()) is not None:
            seen.append(f"{place} {event} {args[0]!r}" if args else f"{place} {event}")

    sys.addaudithook(audit)
    for name in names:
        importlib.import_module(name)
    import torch
    if torch.cuda.is_initialized():
        seen.append("the device was touched")
    json.dump(seen, sys.stdout)
"""


def run_python(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "-c", textwrap.dedent(source), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_traces_and_the_app_import_where_no_model_library_is_installed() -> None:
    blocked = ",".join(sorted(MODEL_LIBRARIES))

    done = run_python(IMPORT_WITHOUT_MODEL_LIBRARIES, blocked, ",".join(TORCH_FREE))

    assert done.returncode == 0, done.stderr


def test_importing_a_module_touches_nothing() -> None:
    importable = [name for name in MODULES if not name.endswith("__main__")]
    libraries = "gradio,numpy,torch,transformers"

    done = run_python(
        IMPORT_UNDER_AUDIT, str(ROOT), ",".join(importable), libraries, ",".join(PACKAGES)
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


# --- the project folder -------------------------------------------------------------------


@pytest.mark.parametrize("entry", TOP_LEVEL)
def test_the_fixed_entries_of_the_project_exist(entry: str) -> None:
    assert (ROOT / entry).exists()


def test_every_folder_of_python_files_is_a_package() -> None:
    folders = {
        path.parent
        for top in ("app", "engine", "tests", "training")
        for path in (ROOT / top).rglob("*.py")
    }

    assert [
        str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").exists()
    ] == []
