"""What a long run needs besides its steps.

heap      takes the gaps that compiling leaves in the heap out of use (CPU only)
signals   stops after a step on SIGTERM or SIGINT
tracing   profiler traces of chosen steps
watchdog  ends a run that hangs
"""
