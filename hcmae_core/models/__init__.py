"""Networks. Nothing here imports the rest of the library, so that a model can be lifted out."""
