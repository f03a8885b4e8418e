"""What a training leaves on disk, in the order in which it is written and used.

store        the checkpoints of a run: saved, pruned, verified against their manifests, and the newest
ema          power-function averages of the weights while training
publish      config.json and the weights for use in the run folder
posthoc      averages of any width afterwards, from snapshots (mf-ema)
consolidate  weights taken out of a run into a folder of their own (mf-consolidate)
check        the files of a folder compared with their recorded digests (mf-check)
"""
