"""Expected seconds of whole passes, from calibrated operation times and how they fit together."""
