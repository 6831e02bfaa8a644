"""A tiny run that several files of tests look at."""

import pytest

from cope_jax.training.loop import train


@pytest.fixture(scope="session")
def workdir(make_tiny_config, tmp_path_factory):
    """A work directory of a tiny run."""
    folder = tmp_path_factory.mktemp("run")
    train(make_tiny_config(), folder)
    return folder
