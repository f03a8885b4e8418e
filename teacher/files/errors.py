"""The error of everything that reads or fetches weights."""


class WeightsError(ValueError):
    """A run folder or weight file that cannot be used; the message says which and why, in one line."""
