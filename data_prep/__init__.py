"""Turns releases and tables of products into array records; uses neither JAX nor `cope_jax`.

The commands `catalog`, `table`, `download`, `build`, `verify` and `inspect` are steps from text files to checked data
sets; `synthetic` and `sources` write releases for those who have none. `catalog` contains the joined Parquet files,
`images` finds and checks images, `records` writes them as shards, `rope` is the TFDS builder.
"""
