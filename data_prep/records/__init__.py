"""Array records: their schema, and how a catalog is written as shards.

schema   features, serialized records, ArrayRecord files
inputs   a catalog, its images and their fingerprint
shards   shards of items and their reports
dropped  images that are dropped: their limit and their list
runners  a pool of processes or Apache Beam, which write the shards
checks   problems in finished files
"""
