"""Parts of a run, shared by training, evaluation, search and export.

config, config_validation, config_file  fields and bounds, validation, config.json
model, state, inputs, schedule          the model and its state, batches and tokenizer, learning rate
checkpoints, manifest                   saved states and their integrity
log_file, log_lines, progress           logs and the progress line
provenance                              what each start of a run depended on
"""
