"""Networks and losses of HC-MAE and its rivals. Imports torch, timm and itself, so that it can be lifted out."""

__version__ = "0.2.0"
