"""Runs real kernels on the device at hand and records what they took."""
