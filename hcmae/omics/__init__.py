"""Molecules: readers, imputation, differential tests, forest importance, selection."""
