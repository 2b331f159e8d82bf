"""The Genomic Data Commons: queries, transfers that resume, and fetching a cohort."""
