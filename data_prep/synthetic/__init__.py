"""The command `synthetic`: writes a release of drawn products, with difficulties like those of the real one.

products, plan, release     attributes of products, items and their frames, files
silhouettes, sprites        pictures of single products
backgrounds, camera, scenes frames of pages, videos and lives
phrases, texts              titles and transcripts in Chinese
"""
