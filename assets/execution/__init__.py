"""What a worker runs of each stage: its `run` function and the verdicts of its checks. torch is
imported here.
"""
