"""Searches of hyperparameters with Optuna."""
