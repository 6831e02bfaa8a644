"""Hard batches of a run that resumes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cope_jax.data.records import fingerprint, open_records
from cope_jax.parallel.mesh import make_mesh
from cope_jax.runs.checkpoints import Checkpoints, ProductOrder, TrainState
from cope_jax.runs.config_validation import replace_fields
from cope_jax.training.hard_batches import HardBatches


@pytest.fixture(scope="module")
def run(tiny_config):
    """A run that reads the training split."""
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    return SimpleNamespace(
        mesh=mesh, config=replace_fields(tiny_config, {"data.eval_split": "train", "data.hard_batches": 0.5})
    )


def test_groups_of_other_data_are_dropped(run, data_dir):
    count, own = len(open_records(data_dir, "train").products), fingerprint(data_dir, "train")

    def kept(size, data):
        batches = HardBatches(
            lambda start_step, groups: groups, run, ProductOrder(np.arange(size)[::-1].astype(np.int32), data), 4
        )
        assert (batches.order is None) == (batches.batches is None)
        return batches.order is not None and (len(batches.batches.order), batches.order.data) == (size, own)

    assert kept(count, own)
    assert kept(count, "")  # as earlier versions saved it
    for size, data in ((count - 1, ""), (count + 1, ""), (count, "0" * 16)):
        assert not kept(size, data)


def test_a_checkpoint_has_the_order_and_its_data(tmp_path):
    state = TrainState(jnp.int32(5), {"model": jnp.ones(3)}, {}, ())
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(5, state, {}, order=ProductOrder(np.array([2, 0, 1], np.int32), "00ff"))
    with Checkpoints(tmp_path) as checkpoints:
        order, data = checkpoints.read_order(5)
    assert (order.tolist(), data) == ([2, 0, 1], "00ff")
