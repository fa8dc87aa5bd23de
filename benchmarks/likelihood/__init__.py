"""Log-densities: the errors and the costs of the methods and of the estimators of a trace."""
