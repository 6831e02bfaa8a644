import re

from data_prep.synthetic.seeds import generator, image_name


def test_a_generator_depends_on_seed_and_purpose_alone():
    draws = generator(3, "frames", "video", 17).integers(1000, size=8).tolist()
    generator(3, "frames", "video", 18).integers(1000, size=8)
    assert generator(3, "frames", "video", 17).integers(1000, size=8).tolist() == draws
    others = [
        (4, "frames", "video", 17),
        (3, "frame", "video", 17),
        (3, "frames", "live", 17),
        (3, "frames", 17),
    ]
    assert all(generator(*other).integers(1000, size=8).tolist() != draws for other in others)


def test_draws_stay_the_same_from_version_to_version():
    assert generator(0, "products").integers(1000, size=4).tolist() == [990, 392, 424, 36]


def test_image_names_look_like_the_real_ones_and_do_not_repeat():
    names = {image_name(0, domain, item, i) for domain in ("page", "live") for item in range(50) for i in range(4)}
    assert len(names) == 400
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.jpg", name) for name in names)
