"""The HTML report of an evaluated checkpoint.

`report` collects its contents and renders them with the template, style sheet, and script in `pages/`. The parts are
`svg_charts` and `training_charts`, the map of embeddings in `pca_map`, and the queries with their results in
`query_gallery`.
"""
