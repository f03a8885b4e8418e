"""Weights on disk, and how published ones get here. Names are imported from the module that they are in.

run_folder   what a run folder holds: its files, config.json, features.json
loading      which weights of it are meant, their identity, and the network
cards        the published files: addresses, sizes, digests, licences
fetch        downloading them
convert      turning them into components, and into a run folder
layouts      names and shapes of every component
untrusted    reading checkpoints of strangers as nothing but tensors
"""
