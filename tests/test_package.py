"""Tests of the package: what is in its wheel, and that the locked versions are complete and within the ranges."""

import re
import subprocess
import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

from cope_jax import __version__

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements-lock.txt").read_text(encoding="utf-8").splitlines()
SET_FILES = {path.stem.partition("-")[2] or "base": path for path in sorted(ROOT.glob("requirements*.txt"))}


def test_a_wheel_has_all_files_of_the_packages_and_the_configs_in_one_of_them(tmp_path):
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "cope_jax", "data_prep", "configs"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()
    assert found == {re.sub("^configs/", "cope_jax/shipped/configs/", name) for name in tracked}
    metadata = zipfile.ZipFile(wheel).read(f"cope_jax-{__version__}.dist-info/METADATA").decode()
    required = {line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Requires-Dist: ")}
    assert "uvicorn<0.55,>=0.54; extra == 'serve'" in required


def requirements(path):
    """Returns the requirements in a file."""
    lines = (line.partition(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_the_lock_has_a_hashed_version_within_the_range_of_each_requirement():
    """torch is not locked: each device has a build of its own."""
    pins = {}
    for line in LOCK:
        if not line.startswith("#"):
            pin, sets = re.fullmatch(r"(.*?)(?: --hash=sha256:[0-9a-f]{64})+  # ([a-z ]+)", line).groups()
            pin = Requirement(pin)
            pins[re.sub("[-_.]+", "-", pin.name.lower())] = next(iter(pin.specifier)).version, sets.split()
    for name, path in SET_FILES.items():
        for wanted in requirements(path) if name != "lock" else ():
            if (wanted_name := re.sub("[-_.]+", "-", wanted.name.lower())) != "torch":
                version, sets = pins[wanted_name]
                assert wanted.specifier.contains(version), f"{wanted}: run ./run.sh lock"
                assert {"base", name} & {*sets}, f"{wanted} is not in the set {name}: run ./run.sh lock"
    assert {"cuda", "tpu"} <= {name for _, sets in pins.values() for name in sets}
