"""The prompts of published benchmarks, and the files that their own evaluation code reads."""
