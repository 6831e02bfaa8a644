"""Catalogs: checked, joined and ordered items of a data set, as Parquet.

`python -m data_prep.catalog` builds one from a release (release_parser, release_catalog), `python -m data_prep.table`
from a table (table_reader, table_parser) or an export of a shop (formats). Both pass their rows to builder, which sorts
and writes them (split_writer) and lists what it leaves out (rejected_lines). Read catalogs with files.Catalog.
"""
