"""Training of a run.

loop, evaluations             the training loop, and evaluations during and after it
plan, step, gradients         the jitted step and everything it needs, before anything is allocated
hard_batches                  batches with products that the model finds similar
feature_cache                 kept outputs of frozen encoders
objective, optimizer          the loss terms, and AdamW with parameter groups
reporting, progress           logs, TensorBoard and the progress line
signals, watchdog, allocator  stopping a run, ending one that hangs, and memory on CPUs
dry_run                       parameters, arithmetic and memory without training
"""
