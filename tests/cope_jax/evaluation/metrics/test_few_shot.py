import numpy as np
import pytest

from cope_jax.evaluation.metrics import few_shot
from data_prep.common.domains import DOMAINS

OPTIONS = {"ways": 4, "shots": 2, "queries": 3, "episodes": 10, "seed": 0}


def column(values) -> np.ndarray:
    return np.asarray(values, np.int32)[:, None]


def run(support, query, support_products, query_products, **options):
    options = {"name": "p2v"} | OPTIONS | options
    return few_shot.few_shot(
        np.asarray(support, np.float32),
        support_products,
        np.asarray(query, np.float32),
        query_products,
        **options,
    )


def test_oracle_is_perfect_in_six_directions():
    embeddings = {}
    for domain, size in zip(DOMAINS, (14, 21, 28), strict=True):
        products = np.arange(size) % 7
        embeddings[domain] = np.eye(7, dtype=np.float32)[products], column(products)
    results, _ = few_shot.few_shot_by_direction(embeddings, **OPTIONS)
    assert list(results) == ["p2v", "v2p", "p2l", "l2p", "v2l", "l2v"]
    expected = {"accuracy": 1.0, "ci95": 0.0, "ways": 4, "shots": 2, "episodes": 10}
    assert all(metrics == expected for metrics in results.values())


def test_support_comes_before_query():
    """Videos have one item per product, so two shots are impossible if they are the support."""
    eye = np.eye(5, dtype=np.float32)
    twice = np.repeat(eye, 2, 0), column(np.repeat(np.arange(5), 2))
    embeddings = {"page": twice, "video": (eye, column(range(5))), "live": twice}
    results, reasons = few_shot.few_shot_by_direction(embeddings, **OPTIONS)
    assert list(results) == ["p2v", "p2l", "l2p", "l2v"]
    assert reasons["v2p"].startswith("needs 2 products with a query item and 2 support items (config.eval.shots)")
    assert list(reasons) == ["v2p", "v2l"]


def test_support_items_of_a_domain_are_not_its_queries():
    """All items are orthogonal, so that a query is right only if it is its own support."""
    items, products = np.eye(8, dtype=np.float32), column(np.arange(8) // 2)
    settings = {"name": "s2s", "shots": 1}
    assert run(items, items, products, products, **settings)["accuracy"] == 0.5
    assert run(items, items, products, products, within=True, **settings)["accuracy"] == 0
    results, _ = few_shot.few_shot_by_direction({"shop": (items, products)}, **OPTIONS | {"shots": 1})
    assert {name: metrics["accuracy"] for name, metrics in results.items()} == {"s2s": 0}
    single = column([0, 0, 1, 1, 2])  # product 2 has no item left for a query
    assert run(items[:5], items[:5], single, single, within=True, **settings)["ways"] == 2


def test_random_embeddings_are_right_by_chance():
    rng = np.random.default_rng(0)
    products = column(np.arange(600) % 60)
    result = run(
        rng.normal(size=(600, 16)),
        rng.normal(size=(600, 16)),
        products,
        products,
        ways=5,
        queries=8,
        episodes=200,
    )
    # 8,000 predictions, each right with probability 1/5: the standard error is a little more than 0.0045.
    assert result["accuracy"] == pytest.approx(0.2, abs=0.02)
    assert result["ci95"] == pytest.approx(1.96 * np.sqrt(0.2 * 0.8 / 40) / np.sqrt(200), rel=0.4)


def test_hand_computed_accuracy():
    """Every episode has all items of both classes, so each has the same known accuracy."""
    support = [
        [1, 0],
        [0.6, 0.8],
        [0, -1],
        [0.6, -0.8],
    ]  # means (0.8, 0.4) and (0.3, -0.9), before normalization
    support_products = column([7, 7, 9, 9])
    query = [[1, 0], [0, 1], [0.8, -0.6], [0, -1], [0.5, 0.5]]
    # Scores with (0.894, 0.447) and (0.316, −0.949):
    #   7: 0.894 > 0.316 ✓, 0.447 > −0.949 ✓, 0.447 < 0.822 ✗; 9: −0.447 < 0.949 ✓, 0.671 > −0.316 ✗
    result = run(support, query, support_products, column([7, 7, 7, 9, 9]), ways=2)
    assert result == {
        "accuracy": pytest.approx(3 / 5),
        "ci95": pytest.approx(0),
        "ways": 2,
        "shots": 2,
        "episodes": 10,
    }


def test_class_means_are_normalized():
    """The items of class 0 point in different directions, so their mean is short and would lose the query."""
    support = [[0.6, 0.8, 0], [0.6, -0.8, 0], [0, 0, 1], [0, 0, 1]]  # means of length 0.6 and 1
    query = [[0.75, 0, 0.6614378], [0, 0, 1]]  # scores 0.75 and 0.66; without normalization 0.45 and 0.66
    result = run(support, query, column([0, 0, 1, 1]), column([0, 1]), ways=2)
    assert result["accuracy"] == 1.0


def test_ties_count_as_wrong():
    products = column(np.arange(12) % 6)
    assert run(np.ones((12, 3)), np.ones((12, 3)), products, products)["accuracy"] == 0.0


def test_interval_follows_from_episode_accuracies():
    """Each episode's accuracy is 1 or 1/2."""
    support, support_products = np.eye(3)[[0, 1, 2]], column([0, 1, 2])
    # Product 2's query looks like product 0, so an episode with products 0 and 2 is half right.
    query, query_products = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0.1]]), column([0, 1, 2])
    result = run(support, query, support_products, query_products, ways=2, shots=1, episodes=50)
    halves = round((1 - result["accuracy"]) * 50 / 0.5)
    accuracies = [0.5] * halves + [1.0] * (50 - halves)
    assert 5 < halves < 30  # a third is expected
    mean = sum(accuracies) / 50
    deviation = (sum((a - mean) ** 2 for a in accuracies) / 49) ** 0.5
    assert result["accuracy"] == pytest.approx(mean)
    assert result["ci95"] == pytest.approx(1.96 * deviation / 50**0.5)


def test_episodes_depend_on_name_and_seed_only():
    rng = np.random.default_rng(4)
    products = column(np.arange(90) % 15)
    problem = rng.normal(size=(90, 6)), rng.normal(size=(90, 6)), products, products
    first = run(*problem)
    assert run(*problem) == first
    assert run(*problem, seed=1)["accuracy"] != first["accuracy"]
    assert run(*problem, name="v2p")["accuracy"] != first["accuracy"]


def test_only_products_with_enough_items_are_classes():
    """Product 2 lacks a second support item and product 3 a query, so two of four remain."""
    support_products, query_products = column([0, 0, 1, 1, 2, 3, 3]), column([0, 1, 2])
    eye = np.eye(4)
    result = run(eye[support_products[:, 0]], eye[query_products[:, 0]], support_products, query_products, ways=10)
    assert (result["ways"], result["accuracy"]) == (2, 1.0)


def test_items_of_two_classes_are_left_out():
    """Items shared by products 0 and 1 look like product 2, so using one of them would cost accuracy."""
    products = np.array([[0, -1], [0, -1], [0, 1], [1, -1], [1, -1], [2, -1], [2, -1]], np.int32)
    embeddings = np.eye(3)[[0, 0, 2, 1, 1, 2, 2]]
    result = run(embeddings, embeddings, products, products, ways=3, episodes=30)
    assert result == {"accuracy": 1.0, "ci95": 0.0, "ways": 3, "shots": 2, "episodes": 30}


def test_classes_that_share_all_items_are_not_drawn_together():
    """Products 0 and 1 have only common items, so an episode has at most one of them."""
    products = np.array([[0, 1], [0, 1], [2, -1], [2, -1]], np.int32)
    embeddings = np.eye(2)[[0, 0, 1, 1]]
    assert run(embeddings, embeddings, products, products, ways=3)["ways"] == 2
    with pytest.raises(ValueError, match=r"needs 2 products with a query item and 2 support items .*, found 1"):
        run(embeddings[:2], embeddings[:2], products[:2], products[:2])


def test_all_episodes_have_as_many_classes_as_the_smallest():
    """Product 1 shares its items with 0 and 2: an episode has 1 and 3, or 0, 2 and 3."""
    products = np.array([[0, 1], [0, 1], [1, 2], [1, 2], [3, -1], [3, -1]], np.int32)
    assert run(np.eye(6), np.eye(6), products, products, ways=4, shots=1, episodes=40)["ways"] == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"ways": 1}, "ways is 1, but must be at least 2"),
        ({"shots": 0}, "shots is 0, but must be at least 1"),
        ({"queries": 0}, "queries is 0, but must be at least 1"),
        ({"episodes": 9}, "episodes is 9, but must be at least 10"),
    ],
)
def test_invalid_options(option, message):
    products = column([0, 0, 1, 1])
    with pytest.raises(ValueError, match=f"few-shot p2v: {message}"):
        run(np.eye(4), np.eye(4), products, products, **option)


def test_all_products_as_classes():
    """7 ways with one shot; with five shots, only pages have enough support items."""
    embeddings = {}
    for domain, size in zip(DOMAINS, (35, 14, 21), strict=True):
        products = np.arange(size) % 7
        embeddings[domain] = np.eye(7, dtype=np.float32)[products], column(products)
    results = few_shot.few_shot_all_products(embeddings, queries=3, seed=0)
    assert results["1"]["v2l"] == {"accuracy": 1.0, "ci95": 0.0, "ways": 7, "shots": 1, "episodes": 10}
    assert {name for name, metrics in results["5"].items() if metrics} == {"p2v", "p2l"}
    assert results["5"]["p2l"]["ways"] == 7


def test_block_size_does_not_change_accuracy(monkeypatch):
    rng = np.random.default_rng(1)
    products = column(np.arange(80) % 8)
    problem = rng.normal(size=(80, 6)), rng.normal(size=(80, 6)), products, products
    whole = run(*problem)
    monkeypatch.setattr(few_shot, "BLOCK", 5)
    assert run(*problem) == whole
    assert 0 < whole["accuracy"] < 1
