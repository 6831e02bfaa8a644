"""Video files: frames at chosen times, decoded in worker processes, and long recordings as segments.

reader       choice of frames, the pool of workers and its errors
decode       what a worker does: opens a file with PyAV and encodes frames as JPEGs
segments     overlapping clips of a recording, aware of its scenes
transcripts  subtitles and transcripts as the texts of clips
"""
