"""Times of operations: one small physical model per family, its parameters from a calibration."""
