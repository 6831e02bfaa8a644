"""Downloads the images of a catalog into tar shards: `python -m data_prep.download`.

plan        options, and the shards that have something to fetch
run         the download: preflight, workers, progress
shard       a shard: its tar, its ledger (Parquet) and, until it is finished, its journal
fetch       one URL: tries, redirects, deadlines; rate_limit slows down, pauses and gives up
content     checks and shrinks images; failures are the reasons why one is missing
coverage    summary.json: how much of the catalog has arrived
"""
