"""Configuration files for `accelerate launch`, and the launcher under its former name."""
