"""The COPE architecture. Knows arrays and plain values only: no flags, no configs, and no files but in `pretrained`."""
