"""What every computed column of a plan comes from."""
