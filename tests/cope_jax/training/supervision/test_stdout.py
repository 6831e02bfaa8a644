"""A process whose output goes to a full disk lives on."""

import subprocess
import sys

PRINTER = """
import resource, signal, sys
from cope_jax.training.supervision.stdout import outlive_a_full_disk

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
outlive_a_full_disk()
for size in 100, 8, resource.RLIM_INFINITY:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    for stream in sys.stdout, sys.stderr:
        print(f"– {size}", file=stream, flush=True)
"""


def test_what_a_full_disk_refuses_is_dropped(tmp_path):
    paths = [tmp_path / name for name in ("out", "err")]
    with paths[0].open("wb") as output, paths[1].open("wb") as errors:
        assert subprocess.run([sys.executable, "-c", PRINTER], stdout=output, stderr=errors, timeout=60).returncode == 0
    for path in paths:
        first, _, last = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        assert first == "– 100"
        assert last.endswith("– -1\n")
