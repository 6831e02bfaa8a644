"""Names of the domains in which products are shown, in the order used everywhere."""

DOMAINS = ("page", "video", "live")
