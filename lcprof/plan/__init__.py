"""Plans: one scenario, a sweep, and the inverse questions, all over one `estimate`."""
