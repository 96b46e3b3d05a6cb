"""The cost model: work of each operation, memory, and floors of time. No reading, no printing."""
