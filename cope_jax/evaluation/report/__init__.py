"""The HTML report of an evaluated checkpoint, and the page of a comparison.

`report` collects its contents and renders them with the template, style sheet, and script in `pages/`. The parts are
`right_first`, `failures`, `svg_charts` and `training_charts`, the map of embeddings in `pca_map`, and the queries with
their results in `query_gallery`. `comparison_page` shows the queries that runs won and lost.
"""
