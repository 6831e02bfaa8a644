"""Writes requirements-lock.txt: versions and hashes of the packages that run.sh installs. `./run.sh lock` calls this.

All requirements files are resolved together, with JAX for CPUs, CUDA and TPUs and for all systems, so that their sets
fit each other. A line ends with the names of the sets that need its package: `base` is requirements.txt, `video` is
requirements-video.txt, and so on; `cuda` and `tpu` are these builds of JAX. torch, which has builds of its own for each
device, and what only torch needs are left out.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path("requirements-lock.txt")
DEVICES = {"cuda": "jax[cuda13]", "tpu": "jax[tpu]"}
HEADER = """\
# Written by ./run.sh lock. run.sh installs the lines of the sets that a command needs, with
#     pip install --no-deps --require-hashes
# base: requirements.txt; video: requirements-video.txt, …; cuda: jax[cuda13]; tpu: jax[tpu]. torch is not locked.
"""


def resolve(folder: Path, files: list[str], lines: list[str], *options: str) -> list[str]:
    """Returns the requirements that uv finds, `name==version ; marker --hash=…`; writes its inputs to a folder."""
    (folder / "lines.txt").write_text("\n".join(lines) + "\n")
    (folder / "without.txt").write_text("torch ; python_version < '0'\n")
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version=3.11"]
    command += ["--fork-strategy=fewest", "--no-annotate", "--no-header", f"--overrides={folder}/without.txt"]
    command += [*options, *files, f"{folder}/lines.txt"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return re.sub(r" \\\n +", " ", done.stdout).splitlines()


def main() -> None:
    """Resolves all sets together, then finds out which packages each needs."""
    sets = {path.stem.removeprefix("requirements-"): path.name for path in sorted(Path().glob("requirements-*.txt"))}
    sets.pop("lock", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = ["requirements.txt", *sets.values()]
        whole = resolve(folder, files, list(DEVICES.values()), "--generate-hashes")
        (folder / "pins.txt").write_text("\n".join(line.partition(" --hash")[0] for line in whole) + "\n")

        def packages(files: list[str], lines: list[str]) -> set[str]:
            found = resolve(folder, ["requirements.txt", *files], lines, f"--constraints={folder}/pins.txt")
            return {line.partition("==")[0] for line in found}

        needed = {"base": packages([], [])}
        needed |= {name: packages([file], []) - needed["base"] for name, file in sets.items()}
        needed |= {name: packages([], [package]) - needed["base"] for name, package in DEVICES.items()}
    lines = []
    for line in whole:
        of = [name for name, own in needed.items() if line.partition("==")[0] in own]
        lines.append(f"{line}  # {' '.join(of)}\n")
    LOCK.write_text(HEADER + "".join(lines))
    print(f"{LOCK}: {len(lines)} packages, {len(needed['base'])} of them in base")


if __name__ == "__main__":
    main()
