"""The files that install the project agree with each other and with what the code imports."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest
import yaml

from tests.source_tree import MODULES, ROOT, Module, source_files, top_level

PIN = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)==(?P<version>[0-9][A-Za-z0-9.+]*)")
# Where the name to import is not the name to install.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "gdcm": "python-gdcm",
    "yaml": "pyyaml",
}
# Provided by the host where they exist; the code runs without them.
NOT_INSTALLED_BY_US = {"datasets", "spaces", "trl"}
# What only maintainers draw figures with, and the one module that may ask for it.
FOR_DEVELOPMENT = {"matplotlib": "training.figures"}


def pins(file: str) -> dict[str, str]:
    """Lower-case package name to version of one requirements file."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    matches = [PIN.fullmatch(line) for line in lines]
    return {match["name"].lower(): match["version"] for match in matches if match}


def front_matter() -> dict[str, object]:
    """The YAML head of the README, which configures a Hugging Face Space."""
    _, head, _ = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    loaded = yaml.safe_load(head)
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned_exactly(file: str) -> None:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line and not line.startswith(("#", "-r "))]

    assert requirements
    assert [line for line in requirements if not PIN.fullmatch(line)] == []


def test_every_foreign_package_that_the_code_imports_is_pinned() -> None:
    runtime = pins("requirements.txt")
    imported = {
        top_level(item.module)
        for module in source_files()
        for item in module.imports
        if item.level == 0
    }
    foreign = imported - sys.stdlib_module_names - {"app", "engine", "training"}
    wanted = {DISTRIBUTIONS.get(name, name).lower() for name in foreign - NOT_INSTALLED_BY_US}

    assert wanted - runtime.keys() == FOR_DEVELOPMENT.keys()


def test_what_development_alone_installs_is_imported_where_it_is_caught() -> None:
    development = pins("requirements-dev.txt")
    for package, only in FOR_DEVELOPMENT.items():
        assert package in development
        importers = {
            module.name
            for module in source_files()
            for item in module.imports
            if top_level(item.module) == package
        }
        assert importers == {only}


def test_a_space_starts_the_app_with_the_pinned_gradio() -> None:
    head = front_matter()

    assert head["sdk"] == "gradio"
    assert head["sdk_version"] == pins("requirements.txt")["gradio"]
    assert (ROOT / str(head["app_file"])).is_file()
    assert head["license"] == "apache-2.0"


def test_the_configured_python_is_one_the_project_supports() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        tools = tomllib.load(file)["tool"]

    assert tools["ruff"]["target-version"] == "py311"
    assert tools["mypy"]["python_version"] == "3.11"
    assert str(front_matter()["python_version"]) in {"3.11", "3.12"}


def test_the_commit_hooks_take_every_file_that_is_shipped() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    hooks = [hook for repo in yaml.safe_load(text)["repos"] for hook in repo["hooks"]]
    limits = [hook for hook in hooks if hook["id"] == "check-added-large-files"]
    folders = ("app", "assets", "docs", "engine", "tests", "tools", "training")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in paths)
    for path in paths:
        name, kilobytes = path.relative_to(ROOT).as_posix(), -(-path.stat().st_size // 1024)
        caps = [
            int(hook["args"][0].removeprefix("--maxkb="))
            for hook in limits
            if re.search(hook.get("files", ""), name)
            and not re.search(hook.get("exclude", "^$"), name)
        ]
        assert len(caps) == 1, name
        assert kilobytes <= min(caps[0], 10_000_000 // 1024), name


def test_torchvision_is_never_needed() -> None:
    modules: list[Module] = list(MODULES.values())

    imported = {top_level(item.module) for module in modules for item in module.imports}

    assert "torchvision" not in imported | pins("requirements.txt").keys()


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"

    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    assert "make test" in script.read_text(encoding="utf-8")
