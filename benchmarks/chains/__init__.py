"""Discrete chains such as DDPM and SMLD next to SDEs, and learned noise schedules."""
