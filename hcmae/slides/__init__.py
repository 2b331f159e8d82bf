"""Pixels: reading slides, tissue, regions and the store of one HDF5 per slide."""
