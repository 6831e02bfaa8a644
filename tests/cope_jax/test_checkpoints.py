"""The command that verifies checkpoints."""

import pytest
from absl import app

from cope_jax.checkpoints import main
from cope_jax.runs.manifest import write_manifest


@pytest.fixture
def workdir(tmp_path):
    """A work directory with the checkpoints 9 and 10, of which 10 is invalid."""
    for step in ("9", "10"):
        folder = tmp_path / "checkpoints" / step
        (folder / "state").mkdir(parents=True)
        (folder / "state/array").write_bytes(b"1234567")
        write_manifest(folder)
    (folder / "state/array").write_bytes(b"123456")
    return tmp_path


def verify(folder) -> int:
    """Returns the exit code."""
    with pytest.raises(SystemExit) as ended:
        main("verify", str(folder))
    return ended.value.code


def test_invalid_checkpoints_are_named(workdir, capsys):
    for folder in (workdir, workdir / "checkpoints"):
        assert verify(folder) == 1
        assert capsys.readouterr().out.splitlines() == [
            f"{workdir / 'checkpoints/9'}: no problems found",
            f"{workdir / 'checkpoints/10'}: state/array has 6 bytes instead of 7",
        ]


def test_one_checkpoint_can_be_verified(workdir, capsys):
    assert verify(workdir / "checkpoints/9") == 0
    (workdir / "checkpoints/9/manifest.json").unlink()
    assert verify(workdir / "checkpoints/9") == 1
    assert capsys.readouterr().out.endswith("checkpoints/9: manifest.json is missing\n")


def test_other_folders_and_commands_are_errors(workdir):
    with pytest.raises(FileNotFoundError, match=r"no checkpoints in .*; expected a work directory"):
        main("verify", str(workdir / "checkpoints/9/state"))
    with pytest.raises(app.UsageError, match="verify DIR"):
        main("repair", str(workdir))
