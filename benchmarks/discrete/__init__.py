"""Solvers of discrete states, with exact models and with trained ones."""
