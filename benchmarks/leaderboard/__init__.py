"""Every solver at a few budgets on many models, and pictures of the page of a benchmark."""
