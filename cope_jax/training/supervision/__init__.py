"""What a long run needs besides its steps.

allocator  mimalloc for training on CPUs
signals    stops after a step on SIGTERM or SIGINT
tracing    profiler traces of chosen steps
watchdog   ends a run that hangs
"""
