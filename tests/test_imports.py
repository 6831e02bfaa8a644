"""Every module, config and command can be imported, without TensorFlow and without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("cope_jax", "configs", "data_prep")
    for path in (ROOT / folder).rglob("*.py")
)


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_all_modules_import_together_and_pull_in_neither_framework():
    """Together, because two that define the same flags at import would collide."""
    done = python(
        f"import importlib, sys\n"
        f"for name in {MODULES}: importlib.import_module(name)\n"
        f"print(sorted({{'tensorflow', 'torch'}} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_data_prep_stays_free_of_jax_and_of_cope_jax():
    names = [name for name in MODULES if name.startswith("data_prep")]
    done = python(
        f"import importlib, sys\n"
        f"for name in {names}: importlib.import_module(name)\n"
        f"print(sorted({{'jax', 'jaxlib', 'cope_jax'}} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        "cope_jax.train",
        "cope_jax.evaluate",
        "cope_jax.compare",
        "cope_jax.embed",
        "cope_jax.export",
        "cope_jax.search",
        "data_prep.synthetic",
        "data_prep.sources.grocery",
        "data_prep.build",
        "data_prep.inspect",
        "data_prep.verify",
        "data_prep.download",
        "data_prep.catalog",
        "data_prep.table",
    ],
)
def test_every_command_explains_itself(command):
    done = subprocess.run(
        [sys.executable, "-m", command, "--helpshort"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "python -m" in done.stdout or "flags:" in done.stdout, done.stderr
    if command in ("cope_jax.train", "cope_jax.evaluate", "cope_jax.embed"):
        assert "--coordinator" in done.stdout
