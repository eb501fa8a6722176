"""Agreement with the reference implementation's recorded training runs, step by step."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from hypernoise.hypernoise_core.rewards import Ensemble
from hypernoise.hypernoise_core.rewards.images import Preprocess
from hypernoise.hypernoise_core.rewards.redness import Redness
from hypernoise.hypernoise_core.rewards.reward import Reward
from hypernoise.training.batches import Batch
from hypernoise.training.config import TrainingConfig
from hypernoise.training.trainer import Trainer

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4


class Dot(Reward):
    """The recording's stand-in for a preference model: a cosine in a random linear feature."""

    name, title, loss_offset = "dot", "Dot", 1.0

    def __init__(self, projection: Tensor, texts: Tensor) -> None:
        super().__init__()
        self.projection, self.texts, self.preprocess = projection, texts, Preprocess(224)

    @classmethod
    def load(cls, store):
        raise NotImplementedError

    def score_batch(self, batch, prompts):
        pooled = F.adaptive_avg_pool2d(batch.pixels(self.preprocess), 16).flatten(1)
        texts = self.texts[[int(prompt) for prompt in prompts]]
        return F.cosine_similarity(pooled @ self.projection, texts)


@dataclass(frozen=True)
class RecordedBatch(Batch):
    noise: Tensor = None

    def draw(self, shape):
        assert self.noise.shape[1:] == tuple(shape)
        return self.noise, super().draw(shape)[1]


class RecordedPlan:
    """The recorded noise and prompts; a prompt is the text of its number."""

    def __init__(self, tensors: dict[str, Tensor], in_update: int) -> None:
        self.latents, self.ids, self.in_update = (
            tensors["latents"],
            tensors["prompt_ids"],
            in_update,
        )
        self.steps = len(self.latents) // in_update

    def update(self, step):
        for i in range(step * self.in_update, (step + 1) * self.in_update):
            prompts = tuple(str(int(n)) for n in self.ids[i])
            yield RecordedBatch(prompts, (0,) * len(prompts), 1, noise=self.latents[i])


class RecordedFeatures:
    def __init__(self, tensors: dict[str, Tensor], guidance: float) -> None:
        self.tensors, self.guidance = tensors, guidance

    def rows(self, prompts):
        rows = [int(prompt) for prompt in prompts]
        return {
            "prompt_embeds": self.tensors["embeds_bank"][rows],
            "prompt_attention_mask": self.tensors["masks_bank"][rows],
            "guidance": torch.full((len(rows),), self.guidance),
        }


def config_of(hyper: dict, adapter: Path) -> TrainingConfig:
    return TrainingConfig(
        optim=hyper["optimizer"],
        lr=hyper["lr"],
        warmup_steps=hyper["warmup_steps"],
        grad_clip=hyper["grad_clip"],
        accumulation_steps=hyper["accumulation_steps"],
        reg_type=hyper["reg_type"],
        reg_weight=hyper["reg_weight"],
        latent_type=hyper["latent_type"],
        init_adapter=adapter,
        precision="float32",
    )


def test_every_update_and_the_final_adapter(case, tmp_path):
    trace_file = case.folder / "train_trace.json"
    if not trace_file.is_file():
        pytest.skip("the case records no training")
    recorded = json.loads(trace_file.read_text())
    hyper, trace = recorded["hyper"], recorded["trace"]
    inputs = load_file(case.folder / "train_inputs.safetensors")
    adapter = tmp_path / "adapter_model.safetensors"
    save_file(load_file(case.folder / "train_init_adapter.safetensors"), adapter)
    lora = {"peft_type": "LORA", "r": hyper["rank"], "lora_alpha": hyper["alpha"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(lora))
    dot = Dot(inputs["dot_image_projection"], inputs["dot_text_features"])
    weights = hyper["weights"]
    rewards = Ensemble({"redness": (Redness(), weights["Redness"]), "dot": (dot, weights["Dot"])})
    trainer = Trainer(
        case.pipeline,
        rewards,
        [""],
        RecordedFeatures(inputs, 4.5 * case.network.config.guidance_embeds_scale),
        config_of(hyper, tmp_path),
        size=case.image_size,
        base_model="",
    )
    accumulation = hyper["accumulation_steps"]
    trainer.plan = RecordedPlan(inputs, accumulation)
    worst = 0.0
    for step, metrics in enumerate(trainer.updates()):
        expected = trace[step * accumulation : (step + 1) * accumulation]
        pairs = {
            "loss": (metrics["loss"], mean(expected, "total")),
            "redness": (-metrics["redness"], mean(expected, "Redness")),
            "dot": (1 - metrics["dot"], mean(expected, "Dot")),
            "penalty": (metrics["penalty"], mean(expected, "regularization")),
            "norm": (metrics["norm"], mean(expected, "norm")),
            "grad_norm": (metrics["grad_norm"], expected[-1]["grad_norm"]),
            "lr": (metrics["lr"], expected[-1]["lr_used"]),
        }
        for name, (got, wanted) in pairs.items():
            # Redness is a difference that comes near 0: there, 1e-7 of the range of images counts.
            assert got == pytest.approx(wanted, rel=TOLERANCE, abs=1e-7), (step, name)
            worst = max(worst, abs(got - wanted) / max(abs(wanted), 1e-2))
    assert trainer.step == len(trace) // accumulation
    final = load_file(case.folder / "train_final_adapter.safetensors")
    start = load_file(case.folder / "train_init_adapter.safetensors")
    trained = trainer.trained.branches
    got = {
        f"{name}.lora_{factor}.weight": weight.detach()
        for name, branch in trained.items()
        for factor, weight in (("A", branch.down), ("B", branch.up))
    }
    assert got.keys() == final.keys()
    error, moved = distance(got, final), distance(start, final)
    print(f"trace: {worst:.1e}; final adapter: {error / distance_from_0(final):.1e} of its size, ")
    print(f"{error / moved:.1e} of its way")
    assert error <= TOLERANCE * distance_from_0(final)
    assert error <= TOLERANCE * moved


def mean(entries: list[dict], name: str) -> float:
    return sum(entry[name] for entry in entries) / len(entries)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[k] - b[k]).square().sum()) for k in b) ** 0.5


def distance_from_0(a: dict[str, Tensor]) -> float:
    return sum(float(v.square().sum()) for v in a.values()) ** 0.5
