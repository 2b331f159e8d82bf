"""Verdicts: metrics, Kaplan-Meier, comparison, tables."""
