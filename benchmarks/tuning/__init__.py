"""Grids and programs tuned to one model or to many, and the search for a sampler."""
