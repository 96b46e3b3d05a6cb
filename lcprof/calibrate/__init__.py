"""Where measurements become calibrations."""
