"""Attacks on the library: kills, full disks, hostile files, many processes in one folder.

Each kind is a function that tries so many attacks from a seed and returns a ``Tally``. The tests run a few of each,
``benchmarks/checks/reliability.py`` all of them.
"""
