"""Candidate rows go in, codes come out: the choice, the scales, coordinate descent."""
