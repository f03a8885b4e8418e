"""Parts of the training loop: what it is given, its data, its state, and what goes wrong."""
