"""HC-MAE rebuilt: curation, slides, omics, masked autoencoders, survival, evaluation."""

__version__ = "0.1.0"
