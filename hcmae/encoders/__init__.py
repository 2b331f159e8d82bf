"""Patch encoders: what each is and how it is fed, their vectors in the stores, and features that others have made."""
