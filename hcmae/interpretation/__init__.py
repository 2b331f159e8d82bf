"""A look inside trained networks: attention, what leaving a region out does, probes of the vectors."""
