"""What happens during training: held-out prompts, a watched reward, the report of the run."""
