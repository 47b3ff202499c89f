"""Scores, each with the sums it is made of."""
