"""The compared methods of Table II, one file each."""
