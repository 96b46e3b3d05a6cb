"""Views of plans and records. Nothing here computes."""
