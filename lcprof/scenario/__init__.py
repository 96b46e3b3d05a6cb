"""From files to objects: reading, validating and expanding scenarios."""
