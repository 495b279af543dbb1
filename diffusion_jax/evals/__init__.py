"""Metrics: distances between sets of features, in float64 on the host, and the statistics they are computed from."""
