"""Sampling: from video and text to sound; the entry point is `pipeline.py`.

stages      names of the stages, and the clock that times them         generator   noise -> latent -> wave
config      steps, guidance, solver, precision                         fast        the same, faster (`--fast`)
scene       video and prompt of one sound; the sound                   windows     long sounds in windows
provenance  how a sound was made, in its file's tags                   model_card  a folder to publish
jobs        the jobs of a sampling command, and their results          export      ONNX and torch.export
"""
