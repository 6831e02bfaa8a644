"""The three domains a product is shown in, in the order used everywhere."""

DOMAINS = ("page", "video", "live")
