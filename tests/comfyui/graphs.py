"""Graphs in ComfyUI's API format."""


def text_to_image(
    folder: str,
    *,
    prompt: str = "a red circle left of a blue square",
    seed: int = 7,
    batch_size: int = 1,
    steps: int = 1,
    denoise: float = 1.0,
    hypernetworks: tuple[tuple[str, float], ...] = (),
) -> dict:
    """Load SANA-Sprint, apply (name, strength) pairs, KSampler, save the latent and the image.

    Node ids: model, positive, negative, latent, load<i>, apply<i>, sampler, decode, image,
    saved_latent.
    """
    graph = {
        "model": _node(
            "HyperNoise_LoadSanaSprint", folder=folder, instruction=True, precision="auto"
        ),
        "positive": _node("CLIPTextEncode", text=prompt, clip=["model", 1]),
        "negative": _node("CLIPTextEncode", text="", clip=["model", 1]),
        "latent": _node("HyperNoise_EmptySanaLatent", width=64, height=64, batch_size=batch_size),
    }
    source = "model"
    for i, (name, strength) in enumerate(hypernetworks):
        graph[f"load{i}"] = _node("HyperNoise_LoadHypernetwork", hypernetwork=name)
        graph[f"apply{i}"] = _node(
            "HyperNoise_Apply", model=[source, 0], hypernoise=[f"load{i}", 0], strength=strength
        )
        source = f"apply{i}"
    graph["sampler"] = _node(
        "KSampler",
        model=[source, 0],
        positive=["positive", 0],
        negative=["negative", 0],
        latent_image=["latent", 0],
        seed=seed,
        steps=steps,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=denoise,
    )
    graph["decode"] = _node("VAEDecode", samples=["sampler", 0], vae=["model", 2])
    graph["image"] = _node("SaveImage", images=["decode", 0], filename_prefix="image")
    graph["saved_latent"] = _node("SaveLatent", samples=["sampler", 0], filename_prefix="latent")
    return graph


def _node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}
