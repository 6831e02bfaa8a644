"""The TFDS data set `rope`. Import `data_prep.rope.rope_dataset_builder` to register it with `tfds.load`."""
