"""The command `inspect`: shows what a built data set contains, so that a person can judge it within a minute.

distributions    histograms of the records and their percentiles
page             an HTML page with tables, plots and some products of each split
split_overlap    products and images that occur in more than one split
near_duplicates  pictures of the same photo
"""
