"""SANA-Sprint as ComfyUI's MODEL, CLIP and VAE; the networks are diffusers' own classes."""
