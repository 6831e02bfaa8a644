"""The table of counts, its notes and the comparison with ROPE."""

from data_prep.catalog.summary import ROPE, compare_with_rope, format_summary
from tests.data_prep.catalog.sample_releases import build


def test_unusual_files_are_noted(tmp_path):
    catalog = build(tmp_path, max_rejected=0, page_titles="\ufeff7, a\r\n\r\n8, b\r\n", product_lives_pair="99, 6\n")
    assert [item.text for item in catalog.items("train", "page")] == ["b", "a"]
    text = format_summary(catalog.summary)
    assert "training_page_titles.txt: of 3 lines 1 blank, 3 with CRLF, a byte order mark" in text
    assert "training_product_lives_pair.txt: of 1 lines 1 item without frames, kept" in text


def test_a_domain_without_items_is_noted(tmp_path):
    empty = {"product_lives_pair": "", "live_asrs": "", "live_clips": ""}
    text = format_summary(build(tmp_path, **empty).summary)
    assert text.endswith("\ntrain   has no live items, so it cannot be built")


def test_the_counts_of_rope_are_recognized():
    def domains(**changed):
        counts = ROPE["train"] | changed
        return {name: {"products" if name == "product" else "items": count} for name, count in counts.items()}

    assert compare_with_rope("train", domains()) == "the counts of ROPE's train split"
    near = "like ROPE's train split, but 187,430 products, not 187,431; 5,837,715 videos, not 5,837,716"
    assert compare_with_rope("train", domains(product=187_430, video=5_837_715)) == near
    assert compare_with_rope("train", domains(live=300)) == ""
    assert compare_with_rope("validation", domains()) == ""
