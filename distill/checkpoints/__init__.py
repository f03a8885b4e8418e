"""What a training leaves on disk, in the order in which it is written and used.

manifest     one checkpoint, and whether it is exactly what was written
store        the checkpoints of a run: saved, pruned, and the newest that verifies
ema          power-function averages of the weights while training
publish      config.json and the weights for use in the run folder
posthoc      averages of any width afterwards, from snapshots (mf-ema)
consolidate  weights taken out of a run into a folder of their own (mf-consolidate)
check        everything that folders record of themselves, compared (mf-check)
"""
