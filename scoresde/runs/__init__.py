"""Runs: the config and its overrides, the objects built from it, the run's folder, likelihood scores.

This package imports nothing, because its modules need the packages of the command line and ``load`` must not.
"""
