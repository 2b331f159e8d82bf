"""Pre-training without labels: MAE-Patch, MAE-Region, DINO; and the vectors that they write into the stores."""
