"""The training loop: the loop itself, its state and resuming, its log, and what ends it early."""
