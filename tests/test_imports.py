"""Tests of the package structure: which module may import which, and that every module and command starts."""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from cope_jax.__main__ import COMMANDS
from cope_jax.training.allocator import PURGE_DELAY

ROOT = Path(__file__).parents[1]
PATHS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("cope_jax", "configs", "data_prep", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
}

# Each package of cope_jax, with the packages that it may import besides itself.
FOUNDATION = {"data", "models", "losses"}
ALLOWED = {
    "data": set(),
    "models": set(),
    "losses": set(),
    "parallel": FOUNDATION,
    "runs": FOUNDATION | {"parallel"},
    "evaluation": FOUNDATION | {"parallel", "runs"},
    "training": FOUNDATION | {"parallel", "runs", "evaluation"},
    "search": FOUNDATION | {"parallel", "runs", "evaluation"},
}
SHARED_WITH_DATA_PREP = re.compile(r"data_prep\.(common(\.\w+)?|records\.schema)")
# Modules of cope_jax outside of its packages: all may import these; the others are commands.
SHARED_MODULES = {"exported"}


def imported_by(name: str) -> Iterator[str]:
    """Yields the full names that a module imports, at its top or within functions: modules and `module.attribute`."""
    for node in ast.walk(ast.parse(PATHS[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} uses a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def project_imports(name: str) -> set[str]:
    """Returns the modules of this project that a module imports by name."""
    imports = set(imported_by(name))
    return {found if found in PATHS else found.rpartition(".")[0] for found in imports} & PATHS.keys() - {name}


IMPORTS = {name: project_imports(name) for name in PATHS}


def violations(rule) -> list[str]:
    """Lists the imports that a rule (importer, imported) → bool forbids."""
    pairs = ((name, found) for name, imports in sorted(IMPORTS.items()) for found in sorted(imports))
    return [f"{name} imports {found}" for name, found in pairs if not rule(name, found)]


def package_of(name: str) -> str:
    """Returns the second part of a module's name: `runs` of `cope_jax.runs.config`."""
    return (*name.split("."), "")[1]


def is_command(name: str) -> bool:
    """Whether a module of cope_jax is one of its entry points, which may import everything."""
    package = package_of(name)
    return name.endswith("__main__") or (package not in ALLOWED and package not in SHARED_MODULES)


def test_packages_of_cope_jax_import_downward_only():
    def allowed(name: str, found: str) -> bool:
        if not (name.startswith("cope_jax.") and found.startswith("cope_jax")) or is_command(name):
            return True
        own, other = package_of(name), package_of(found)
        return other == own or other in SHARED_MODULES or other in ALLOWED.get(own, set())

    assert {package_of(name) for name in PATHS if name.count(".") > 1 and name.startswith("cope_jax")} == set(ALLOWED)
    assert violations(allowed) == []


def test_cope_jax_imports_only_the_shared_parts_of_data_prep():
    def allowed(name: str, found: str) -> bool:
        if not (name.startswith("cope_jax") and found.startswith("data_prep")):
            return True
        is_decoding = found == "data_prep.images.decoding" and package_of(name) == "data"
        is_video = found.startswith("data_prep.videos.") and package_of(name) == "search"
        return is_decoding or is_video or bool(SHARED_WITH_DATA_PREP.fullmatch(found))

    assert violations(allowed) == []


def test_data_prep_imports_neither_jax_nor_cope_jax():
    forbidden = {"jax", "jaxlib", "flax", "optax", "orbax", "cope_jax", "configs", "benchmarks"}
    names = [name for name in PATHS if name.startswith("data_prep")]
    found = {name: forbidden & {module.split(".")[0] for module in imported_by(name)} for name in names}
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_the_packages_import_neither_configs_nor_benchmarks():
    outside = ("configs", "benchmarks")
    assert violations(lambda name, found: name.startswith(outside) or not found.startswith(outside)) == []


def test_the_loader_of_exported_models_stands_alone():
    assert IMPORTS["cope_jax.exported"] == set()


def test_no_module_imports_itself_through_others():
    try:
        list(TopologicalSorter(IMPORTS).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_no_package_of_data_prep_imports_itself_through_others():
    packages: dict[str, set[str]] = {}
    for name, imports in IMPORTS.items():
        if name.startswith("data_prep.") and name.count(".") > 1 and not name.endswith("__main__"):
            found = {package_of(module) for module in imports if module.startswith("data_prep.")}
            packages.setdefault(package_of(name), set()).update(found - {package_of(name)})
    try:
        list(TopologicalSorter(packages).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_folders_stay_small():
    files = [path.relative_to(ROOT) for name, path in PATHS.items() if not name.startswith("benchmarks")]
    counts = Counter(path.parent for path in files if path.name != "__init__.py")
    assert {str(folder): count for folder, count in counts.items() if count > 15} == {}


def python(code: str, **variables: str) -> str:
    """Runs code in a fresh interpreter, with more environment variables, and returns what it prints."""
    command, environment = [sys.executable, "-c", code], os.environ | variables
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def frameworks_after_importing(names: list[str], frameworks: set[str]) -> str:
    """Imports modules into one process and prints which of the frameworks that loads."""
    return python(
        f"import importlib, sys\n"
        f"for name in {names}: importlib.import_module(name)\n"
        f"print(sorted({frameworks} & {{name.split('.')[0] for name in sys.modules}}))"
    )


def test_all_modules_import_together_without_tensorflow_or_torch():
    """Together, because modules that define the same flags at import time would collide."""
    names = sorted(name for name in PATHS if not name.startswith("benchmarks"))
    assert frameworks_after_importing(names, {"tensorflow", "torch"}) == "[]"


def test_data_prep_runs_without_jax():
    names = sorted(name for name in PATHS if name.startswith("data_prep"))
    assert frameworks_after_importing(names, {"jax", "jaxlib", "cope_jax"}) == "[]"


def test_importing_cope_jax_loads_no_library():
    """The package is imported by commands that need neither jax nor a model, and by `cope --help`."""
    assert python("import sys, cope_jax\nprint(sorted({'jax', 'numpy', 'absl'} & sys.modules.keys()))") == "[]"
    assert python("from cope_jax import Embedder") == ""


# Runs `cope COMMAND --helpshort` in a fork for each command, so that the libraries are imported only once.
HELP_PROGRAM = """
import contextlib, importlib, json, os, sys
from cope_jax.__main__ import COMMANDS, main

for command in COMMANDS.values():
    importlib.import_module(command.target.split()[0])
outputs = {}
for name in COMMANDS:
    reader, writer = os.pipe()
    if not os.fork():
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(writer)
        sys.argv[1:] = [*name.split(), "--helpshort"]
        with contextlib.suppress(SystemExit):
            main()
        sys.stdout.flush()
        os._exit(0)  # without the exit handlers of libraries, which wait for threads
    os.close(writer)
    outputs[name] = open(reader).read()
print(json.dumps(outputs))
"""


@pytest.mark.slow
def test_every_command_explains_itself():
    outputs = json.loads(python(HELP_PROGRAM, **{PURGE_DELAY: "0"}))  # so that training does not restart the process
    assert outputs.keys() == COMMANDS.keys()
    for name, output in outputs.items():
        assert "Traceback" not in output, output
        assert any(words in output for words in ("python -m", "cope ", "flags:", "usage:")), f"{name}: {output}"
    assert all("--coordinator" in outputs[name] for name in ("train", "eval", "embed"))
