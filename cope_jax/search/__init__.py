"""Search for similar items: `python -m cope_jax.search`.

`embedding_store` embeds a split into Parquet files and `index` builds FAISS indexes of them. `item_table` finds words
and filters items. `library` searches all of them, by an item or by your own pictures and text, which `embedder` embeds.
`result_views` formats results, and `server` with `uploads` is the web page.
"""
