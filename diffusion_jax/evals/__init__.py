"""Metrics: distances between sets of features, in float64 on the host, and the statistics of which they are made."""
