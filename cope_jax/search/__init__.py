"""Search for similar items: `python -m cope_jax.search`.

`embedding_store` embeds a split into Parquet files and `index` builds FAISS indexes of them. `library` searches both,
by an item or by your own pictures and text, which `embedder` embeds. `result_views` formats results, and `server` with
`uploads` is the web page.
"""
