"""Metrics of embeddings, computed on the host: ranks, retrieval, few-shot classification, intervals, histograms.

Ranks of positives (`ranks`, which count scores with `score_counts`) are the basis of all retrieval metrics.
"""
