"""Agreement with the reference implementation's recorded losses and image gradients."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hypernoise.hypernoise_core.rewards import Reward
from hypernoise.hypernoise_core.rewards.clip import ClipTokenizer, TransformersClip, read_clip_model
from hypernoise.hypernoise_core.rewards.clip_score import ClipScore
from hypernoise.hypernoise_core.rewards.hps import Hps, load_open_clip
from hypernoise.hypernoise_core.rewards.image_reward import load_image_reward
from hypernoise.hypernoise_core.rewards.images import Preprocess
from hypernoise.hypernoise_core.rewards.pickscore import PickScore
from hypernoise.hypernoise_core.rewards.redness import Redness
from hypernoise.tests.parity.conftest import DEFAULT_FOLDER

pytestmark = pytest.mark.parity

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
BLIP_NAMES = {  # in the recorded configuration -> in transformers
    "img_size": "image_size",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "encoder_width": "encoder_hidden_size",
}


class RecordedTokenizer:
    """The recorded tokens: the case holds no vocabulary of BERT's."""

    length = 35

    def __init__(self, prompts: list[str], tokens: torch.Tensor, mask: torch.Tensor) -> None:
        self._prompts, self._tokens, self._mask = prompts, tokens, mask

    def __call__(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [self._prompts.index(prompt) for prompt in prompts]
        return self._tokens[rows], self._mask[rows]


class Case:
    """One folder of recorded rewards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        expected = json.loads((folder / "expected.json").read_text())
        self.prompts, self.results = expected["prompts"], expected["results"]
        self.tensors = load_file(folder / "tensors.safetensors")

    def reward(self, name: str) -> Reward:
        return getattr(self, f"_{name}")()

    def _hps(self) -> Reward:
        config = json.loads((self.folder / "hps_open_clip_config.json").read_text())
        return Hps(load_open_clip(config, self.folder / "hps_model.safetensors"))

    def _clip(self) -> Reward:
        return ClipScore(self._transformers("clip_model"))

    def _pickscore(self) -> Reward:
        return PickScore(self._transformers("pickscore_model"))

    def _transformers(self, name: str) -> TransformersClip:
        model = read_clip_model(self.folder / name)
        size = model.config.vision_config.image_size
        return TransformersClip(model, ClipTokenizer(), Preprocess(size))

    def _imagereward(self) -> Reward:
        config = json.loads((self.folder / "imagereward_config.json").read_text())
        vision, text = (
            {BLIP_NAMES.get(name, name): value for name, value in config[part].items()}
            for part in ("vision", "text")
        )
        text = {name: value for name, value in text.items() if name != "type_vocab_size"}
        vision |= {"intermediate_size": 4 * vision["hidden_size"], "layer_norm_eps": 1e-6}
        tokens, mask = self.tensors["bert_input_ids"], self.tensors["bert_attention_mask"]
        tokenizer = RecordedTokenizer(self.prompts, tokens, mask)
        return load_image_reward(
            vision, text, self.folder / "imagereward_model.safetensors", tokenizer
        )

    def _redness(self) -> Reward:
        return Redness()


def case_folders() -> list[Path]:
    root = Path(os.environ.get("HYPERNOISE_REFERENCE") or DEFAULT_FOLDER)
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [folder for folder in folders if (folder / "expected.json").is_file()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    folders = case_folders()
    if not folders:
        reason = f"no recorded rewards: HYPERNOISE_REFERENCE names none, nor {DEFAULT_FOLDER}"
        folders = [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="none")]
    metafunc.parametrize("case", folders, ids=lambda f: f.name, indirect=True, scope="module")


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_loss_and_image_gradient(case: Case):
    """Of every reward that the case records."""
    assert case.results
    for name, recorded in case.results.items():
        reward = case.reward(name)
        images = case.tensors["images"].clone().requires_grad_(True)
        loss = reward.loss(images, case.prompts)
        (gradient,) = torch.autograd.grad(loss, images)
        assert loss.item() == pytest.approx(recorded["loss"], rel=LOSS_TOLERANCE), name
        norm = gradient.norm().item()
        assert norm == pytest.approx(recorded["grad_l2"], rel=GRADIENT_TOLERANCE), name
        pooled = F.adaptive_avg_pool2d(gradient, 16)
        expected = case.tensors[f"{name}_grad_pooled16"]
        error = ((pooled - expected).norm() / expected.norm()).item()
        print(
            f"{name}: loss {loss.item():.7g} for {recorded['loss']:.7g}, gradient norm off by "
            f"{abs(norm / recorded['grad_l2'] - 1):.1e}, pooled gradient by {error:.1e}"
        )
        assert error < GRADIENT_TOLERANCE, name


def test_single_scores_of_imagereward(case: Case):
    if "imagereward_scores" not in case.tensors:
        pytest.skip("the case records no single scores")
    scores = case.reward("imagereward").score(case.tensors["images"], case.prompts)
    torch.testing.assert_close(
        scores, case.tensors["imagereward_scores"].squeeze(-1), atol=1e-5, rtol=LOSS_TOLERANCE
    )


def test_tokens_of_clip(case: Case):
    assert torch.equal(ClipTokenizer()(case.prompts), case.tensors["clip_tokens"])
