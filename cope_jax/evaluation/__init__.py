"""Judges the embeddings of test items, in six directions: cross-domain retrieval, few-shot classification."""
