"""Plans: what a config needs and takes on machines that are not here; see `__main__`."""
