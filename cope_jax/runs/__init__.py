"""Parts of a run, shared by training, evaluation, search and export.

config, config_validation, config_file  fields and bounds, validation, config.json
model, initial_weights, inputs          the model, weights it starts from, batches and tokenizer
checkpoints, manifest                   states, saved states and their integrity
log_files                               logs that wait while a disk is full
provenance                              what each start of a run depended on
"""
