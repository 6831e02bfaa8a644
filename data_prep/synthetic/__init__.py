"""The command `synthetic`: writes a release of drawn products, with difficulties like those of the real one.

products, release            attributes of products; items, their frames, and the files
sprites                      pictures of single products
backgrounds, camera, scenes  frames of pages, videos and lives
texts, phrases.json          titles and transcripts in Chinese
"""
