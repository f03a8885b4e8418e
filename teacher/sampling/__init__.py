"""Sampling: from video and text to sound; the entry point is `pipeline.py`.

generator   steps, guidance, solver, precision; noise -> latent -> wave  fast        the same, faster (`--fast`)
stages      names of the stages, and the clock that times them           windows     long sounds in windows
scene       video and prompt of one sound; the sound                     model_card  a folder to publish
provenance  how a sound was made, in its file's tags                     export      ONNX and torch.export
jobs        the jobs of a sampling command, and their results
"""
