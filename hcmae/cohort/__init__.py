"""Who: GDC client, clinical rules, splits and synthetic cohorts."""
