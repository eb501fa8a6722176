"""The tiny world: a small, complete text-to-image setting, built from scratch.

It has captions and scenes (`captions`, `scenes`) and an exact checker (`checker`). `recipe` trains
the two models that ship in `assets/`: the generator tiny-sprint and the reward tiny-preference.
"""
