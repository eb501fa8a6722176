"""Training of the tiny world's two models in `assets/`: tiny-sprint and tiny-preference."""
