"""Random generators and names that depend on a seed and a purpose alone.

Everything random in the synthetic release asks for its own generator by name. So nothing depends on the order
in which things are drawn, nor on how many processes draw them.
"""

import hashlib
import uuid

import numpy as np


def digest(seed: int, *purpose: str | int) -> bytes:
    """Sixteen bytes that look random and depend on `seed` and `purpose` alone."""
    name = "/".join(str(part) for part in (seed, *purpose))
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """The generator of one purpose: `generator(0, "frames", "video", 17)` is the same one everywhere."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest(seed, *purpose), "little")))


def image_name(seed: int, *purpose: str | int) -> str:
    """A name like those of the real release, e.g. `eae32f52-2a9a-41ee-a32e-507c6f3c3e56.jpg`."""
    return f"{uuid.UUID(bytes=digest(seed, 'name', *purpose), version=4)}.jpg"
