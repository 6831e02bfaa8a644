"""Fetches the images of a catalog politely, into tar shards in row order: the parts of `data_prep.download`."""
