"""Environments of commands."""

import jax
import pytest

from cope_jax import cli


def test_sixty_four_bits_are_refused():
    with jax.enable_x64(True), pytest.raises(ValueError, match="JAX_ENABLE_X64 is set, but models need 32-bit numbers"):
        cli.check_environment()


def test_cuda_without_its_plugin_is_refused(monkeypatch):
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    with pytest.raises(ValueError, match="JAX_PLATFORMS is 'cuda,cpu', but JAX is installed without CUDA; unset it"):
        cli.check_environment()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    cli.check_environment()
