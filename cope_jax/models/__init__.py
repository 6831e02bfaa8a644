"""The COPE architecture. Knows arrays and plain values only: no files, no flags, no configs."""
