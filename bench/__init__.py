"""Measures Cassata, and the systems that engineers choose between, on the same work: `bench/run --help`."""
