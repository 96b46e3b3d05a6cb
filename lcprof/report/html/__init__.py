"""The page of a plan: one HTML file that opens offline, and the record that it is built from."""
