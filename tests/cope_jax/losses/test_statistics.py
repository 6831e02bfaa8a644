"""What is watched of a pair, on every mesh, against numpy."""

import jax
import numpy as np

from cope_jax.losses.infonce import infonce_loss
from cope_jax.losses.pairs import Pair
from cope_jax.losses.sigmoid import init_scalars, sigmoid_loss

from .conftest import as_float64, shared


def test_similarities_and_accuracies_are_those_of_the_whole_matrix(make_sides, mesh):
    sides, pairs = make_sides(24), [Pair("page", "live")]
    _, of_sigmoid = jax.jit(
        lambda s: sigmoid_loss(s, init_scalars(temperature=5.0, bias=-1.0), pairs=pairs, mesh=mesh)
    )(sides)
    _, of_infonce = jax.jit(lambda s: infonce_loss(s, pairs=pairs, temperature=0.1, smoothing=0.0, mesh=mesh))(sides)
    exact = as_float64(sides)
    page, live = exact["page"], exact["live"]
    similarity, same = page.vectors @ live.vectors.T, shared(page, live)
    both = np.outer(page.present, live.present)

    def accuracy(similarity, same, both):
        asked = (same & both).any(axis=1)
        nearest = np.where(both, similarity, -np.inf).argmax(axis=1)
        return same[np.arange(len(same)), nearest][asked].mean()

    expected = {
        "positive/page_live": similarity[same & both].mean(),
        "negative/page_live": similarity[~same & both].mean(),
        "accuracy/page_live": accuracy(similarity, same, both),
        "accuracy/live_page": accuracy(similarity.T, same.T, both.T),
    }
    for watched in (of_sigmoid, of_infonce):
        assert watched.keys() == {"loss/page_live", *expected}
        for name, value in expected.items():
            np.testing.assert_allclose(watched[name][0] / watched[name][1], value, rtol=1e-5)


def test_losses_of_pairs_add_up_to_the_loss(make_sides, one_device):
    pairs = [Pair("page", "video", 2.0), Pair("video", "live", 0.5)]
    for loss, watched in (
        sigmoid_loss(make_sides(9), init_scalars(temperature=5.0, bias=-1.0), pairs=pairs, mesh=one_device),
        infonce_loss(make_sides(9), pairs=pairs, temperature=0.1, smoothing=0.1, mesh=one_device),
    ):
        parts = [pair.weight * watched[f"loss/{pair.name}"][0] for pair in pairs]
        np.testing.assert_allclose(loss, sum(parts), rtol=1e-6)
