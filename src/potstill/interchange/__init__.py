"""Interchange interventions: which slices are one variable, which positions swap, and the counterfactual run."""
