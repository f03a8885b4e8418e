"""Weights on disk, and fetching and converting published ones. Import names from their modules.

run_folder   the files of a run folder, its config.json and features.json
loading      choosing the weights of a run folder, their identity, and loading the network
cards        the published files: addresses, sizes, digests, licences
fetch        downloading them
convert      turning them into components, and into a run folder
layouts      names and shapes of every component
untrusted    reading untrusted checkpoints as nothing but tensors
"""
