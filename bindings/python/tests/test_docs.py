"""The examples of the guides and of the docstrings, and the example programs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import dezky

ROOT = Path(__file__).parents[3]
GUIDES = ("docs/python.md", "bindings/python/README.md", "README.md")
EXAMPLES = sorted((ROOT / "examples" / "python").glob("*.py"))


def blocks(guide: Path) -> list[tuple[int, str]]:
    """The Python blocks of a guide, with the numbers of their first lines."""
    found: list[tuple[int, str]] = []
    block: list[str] | None = None
    for number, line in enumerate(guide.read_text().splitlines(), 1):
        if block is None and line == "```python":
            block, first = [], number + 1
        elif block is not None and line == "```":
            found.append((first, "\n".join(block)))
            block = None
        elif block is not None:
            block.append(line)
    return found


@pytest.mark.parametrize("guide", GUIDES)
def test_the_blocks_of_a_guide_run_in_their_order(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("guide")
    found = blocks(ROOT / guide)
    assert found
    for first, block in found:
        # Each run has files of its own. Errors name the line of the guide.
        block = block.replace("sqlite:///tmp/", f"sqlite://{tmp_path}/")
        exec(compile("\n" * (first - 1) + block, guide, "exec"), module.__dict__)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example.name))
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(dezky.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False, env=env
    )
    # Other packages may warn.
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout
    assert os.listdir(tmp_path) == []


def documented() -> list[tuple[str, Any]]:
    """Everything with a docstring: modules, and the public classes and functions of the package."""
    found: dict[str, Any] = {}
    for name in sorted(path.stem for path in Path(dezky.__file__).parent.glob("*.py")):
        if name not in ("__init__", "__main__"):
            found[f"dezky.{name}"] = importlib.import_module(f"dezky.{name}")
    found["dezky"] = dezky
    native = importlib.import_module("dezky._dezky")
    for name, item in vars(native).items():
        if callable(item):
            found[f"dezky._dezky.{name}"] = item
            if inspect.isclass(item):
                found.update({f"dezky._dezky.{name}.{key}": value for key, value in vars(item).items() if callable(value) or isinstance(value, (staticmethod, classmethod))})
    return list(found.items())


def test_the_examples_of_the_docstrings_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finder = doctest.DocTestFinder(exclude_empty=True)
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    said: list[str] = []
    for name, item in documented():
        if inspect.ismodule(item):
            tests = finder.find(item, name)
        else:
            text = inspect.getdoc(item) or ""
            tests = [parser.get_doctest(text, {}, name, None, 0)] if ">>>" in text else []
        for test in tests:
            runner.run(test, out=said.append)
    results = runner.summarize(verbose=False)
    assert results.attempted > 100
    assert results.failed == 0, "".join(said)
