"""The tiny world: a complete, small text-to-image setting that is made from nothing.

Captions and scenes (`captions`, `scenes`) and an exact checker (`checker`); `recipe` makes the two
models that ship in `assets/`: the generator tiny-sprint and the reward tiny-preference.
"""
