"""Runs that start as fast as runs can: what tests of kills and of several processes take time for is compiling."""

import resource
import signal
import struct

import pytest

from cope_jax.runs.config import flatten


@pytest.fixture(scope="session")
def make_quick_config(make_tiny_config):
    """A function that makes the config of a run of five steps with little to compile."""

    def make(**changes):
        config = make_tiny_config()
        config.update_from_flattened_dict(
            {
                "data.frames.video": 1,
                "data.frames.live": 1,
                "model.text_domains": ("page",),
                "model.text.heads": 4,
                "model.vision.heads": 4,
                "model.vision.cross_frame": False,
                "model.vision.drop_path": 0.0,
                "model.vision.integration_depth": 0,
                "train.steps": 5,
                "train.log_every": 1,
            }
            | changes
        )
        return config

    return make


@pytest.fixture(scope="session")
def write_config(tmp_path_factory):
    """A function that writes a config to a file that `--config` takes."""

    def write(config):
        path = tmp_path_factory.mktemp("config") / "config.py"
        path.write_text(
            "from configs import default\n"
            "def get_config():\n"
            "    config = default.get_config()\n"
            f"    config.update_from_flattened_dict({dict(flatten(config))!r})\n"
            "    return config\n"
        )
        return path

    return write


@pytest.fixture
def full_disk():
    """A function that lets files have at most that many bytes, as a full disk would; afterwards none has a limit.

    What pytest captures by `capfd` is in a file, too; what it captures by `capsys` is not.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="session")
def read_records():
    """A function that gives the records of a TFRecord file."""

    def read(path):
        content, place = path.read_bytes(), 0
        while place < len(content):  # eight bytes of length, four of a checksum, the content, four more
            (length,) = struct.unpack_from("<Q", content, place)
            yield content[place + 12 : place + 12 + length]
            place += length + 16

    return read
