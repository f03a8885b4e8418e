"""From films and words to sound; `pipeline.py` is the way in.

stages      names of the stages, and the clock they are timed with     generator   noise -> latent -> wave
config      steps, guidance, solver, precision                         fast        the same, faster (`--fast`)
scene       video and words of one sound; the sound                    windows     long sounds in windows
provenance  how a sound was made, in its file's tags                   model_card  a folder to give away
jobs        what a command is asked for, and its results               export      ONNX and torch.export
"""
