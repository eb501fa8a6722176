"""How the tiny world's two models in `assets/` are made: tiny-sprint and tiny-preference."""
