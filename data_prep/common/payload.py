"""Payloads: what a table says about an item beyond its text and images, carried along as a JSON object.

{"item": "MH01-2", "product": ["MH01"], "title": "Red hoodie", "price": "52.00"}: the ids as in the table if the records
have numbers instead, and the table's other columns as text.
"""

import json
from typing import Any

OWN_ITEM, OWN_PRODUCTS = "item", "product"
CLEAN_TEXT = "text_clean"  # a summary or correction of the text, which training may prefer


def parse_payload(text: str) -> dict[str, Any]:
    """Returns the payload of an item, {} for ""."""
    return json.loads(text) if text else {}
