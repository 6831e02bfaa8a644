"""Helpers shared by `data_prep` and `cope_jax`, free of jax.

cli           runs a command: flags, quiet libraries, one-line errors
differences   differences between two mappings, in words
domains       names and kinds of the domains of a data set, and how to pair them
files         atomic writes, locks and hashes of files
html_pages    HTML pages in one file, with a shared style sheet and a policy that loads nothing
process_pool  a pool of processes
progress      a progress bar on a terminal, lines in a log
text_table    aligned columns of text
"""
