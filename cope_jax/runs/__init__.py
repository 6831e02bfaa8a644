"""Parts of a run, shared by training, evaluation, search and export.

config, config_validation, config_file  fields and bounds, validation, config.json
model, inputs                           the model, batches and tokenizer
initial_weights, pretrained             weights that a run starts from, and the fields that fit them
checkpoints, manifest                   states, saved states and their integrity
log_files                               logs that wait while a disk is full
provenance                              what each start of a run depended on
"""
