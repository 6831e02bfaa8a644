"""Evaluation of a run's checkpoints.

`evaluate_run` embeds a split and computes its metrics (`metrics/`), which `results` stores in the work directory,
`result_tables` prints, and `report/` shows as an HTML page. `query_outcomes` stores what each query found, and
`comparison` compares runs. `probe` evaluates some products during training. `embed_items` embeds items with a
checkpoint, for search as well.
"""
