"""Training of a run.

loop, evaluations                        the training loop, and evaluations during and after it
plan, step, gradients                    the jitted step and everything it needs, before anything is allocated
objective, optimizer                     the loss terms, and AdamW with parameter groups
metrics, tensorboard                     metrics and their logs
dry_run                                  parameters, arithmetic and memory without training
supervision                              signals, stalls, traces and memory of a running process
"""
