"""Tests of domains: their names, order, files, pairs and directions."""

import pytest

from data_prep.common.domains import (
    DOMAINS,
    batch_entries,
    check_domains,
    directions,
    domain_pairs,
    find_data_set,
    is_domain_name,
    parse_domains,
    read_domains,
    write_domains,
)


def test_pairs_and_directions_of_rope_are_those_of_the_paper():
    assert domain_pairs(DOMAINS) == (("page", "video"), ("page", "live"), ("video", "live"))
    assert list(directions(DOMAINS)) == ["p2v", "v2p", "p2l", "l2p", "v2l", "l2v"]
    assert directions(DOMAINS)["l2p"] == ("live", "page")


def test_other_domains_are_named_by_initials_that_are_unique():
    assert directions(["street", "shop"]) == {
        "shop_to_street": ("shop", "street"),
        "street_to_shop": ("street", "shop"),
    }
    assert list(directions({"zoom", "live", "page"})) == ["p2l", "l2p", "p2z", "z2p", "l2z", "z2l"]


def test_a_single_domain_is_paired_with_itself():
    assert domain_pairs(["shop"]) == (("shop", "shop"),)
    assert directions(["shop"]) == {"s2s": ("shop", "shop")}
    assert list(batch_entries(["b", "a"], ["a"]).items()) == [("a", "a"), ("b", "b"), ("a_2", "a")]


@pytest.mark.parametrize("name", ["", "Shop", "2d", "a-b", "a b", "ä", "product", "row", "a_2", "a_text", "a_to_b"])
def test_invalid_names(name):
    assert not is_domain_name(name)
    with pytest.raises(ValueError, match=rf"^here has the domain '{name}'; names are lower-case letters"):
        check_domains({name: "image"}, "here")


def test_domains_are_parsed_in_order():
    assert list(parse_domains(["spin:clip", "video:image", "page:image"]).items()) == [
        ("page", "image"),
        ("video", "image"),
        ("spin", "clip"),
    ]
    with pytest.raises(ValueError, match="--domains has the domain page of kind ''; choose one of image, clip"):
        parse_domains(["page"])
    with pytest.raises(ValueError, match="x has no domains"):
        check_domains({}, "x")


def test_a_data_set_without_the_file_has_the_domains_of_rope(tmp_path):
    assert tuple(read_domains(tmp_path)) == DOMAINS
    write_domains(tmp_path, {"shop": "image"})
    assert read_domains(tmp_path) == {"shop": "image"}
    (tmp_path / "domains.json").write_text('{"shop": "photo"}')
    with pytest.raises(ValueError, match=r"domains\.json has the domain shop of kind 'photo'"):
        read_domains(tmp_path)


def test_the_only_data_set_of_a_folder_is_found(tmp_path):
    assert find_data_set(tmp_path / "none") == tmp_path / "none" / "rope"
    (tmp_path / "shop/product").mkdir(parents=True)
    assert find_data_set(tmp_path) == find_data_set(tmp_path / "shop") == tmp_path / "shop"
    (tmp_path / "rope/product").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has several data sets: choose .*/rope or .*/shop as data folder"):
        find_data_set(tmp_path)
