"""Orders of the solvers, their distances at equal evaluations, and the choice of the default sampler."""
