"""How a run folder is written: tensors in one pass with their digest, manifests, weights for use."""
