"""A look at an edit: what it does at several coefficients, and that what was saved of it reloads."""
