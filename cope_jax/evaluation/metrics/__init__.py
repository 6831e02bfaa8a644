"""Metrics of embeddings, computed on the host: ranks, retrieval and histograms, few-shot classification, intervals.

Ranks of positives (`ranks`, which count scores with `score_counts`) are the basis of all retrieval metrics.
"""
