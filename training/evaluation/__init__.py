"""`hypernoise evaluate`: methods compared on the same prompts and noises, and their report."""
