"""The command `synthetic`: writes a release of drawn products, with difficulties like those of the real one.

products, plan, release      attributes of products; items and their frames; files
outlines, sprites            pictures of single products
backgrounds, camera, scenes  frames of pages, videos and lives
texts, phrases.json          titles and transcripts in Chinese
"""
