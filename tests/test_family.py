"""The three papers' decoders: published sizes, where the norms stand, how weights begin, what is
dropped, what a band hides.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from pydantic import ValidationError

from assets.recipe.recipe import RECIPES, load_recipe
from gpt_model import GPT, ModelConfig
from gpt_model.config import DEFAULT_BAND, PUBLISHED

# V·d + T·d + L·(12d² + 13d), and 2d where there is a final norm, of the printed layers and widths
COUNTS = {
    "gpt1": 116_534_784,
    "gpt2-small": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-small": 125_226_240,
    "gpt3-medium": 355_871_744,
    "gpt3-large": 760_300_032,
    "gpt3-xl": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280,
    "gpt3-6.7b": 6_658_404_352,
    "gpt3-13b": 12_853_386_240,
    "gpt3-175b": 174_604_259_328,
}

# The papers' hyper-parameters, typed from them and not from the recipes. GPT-1: section 4.1 (betas
# and clip: the released fine-tuning code; tokens: a million updates). GPT-2: table 2 and section
# 2.3; the rest was never published and is nanoGPT's, the larger rates GPT-3's. GPT-3: table 2.1
# (0.5M, 1M, 2M and 3.2M as whole sequences; XL's 16 heads and 13B's 5,120 are what divides) and
# appendix B.
M, B = 10**6, 10**9
HALF, ONE, TWO, THREE = 2**19, 2**20, 2**21, 1536 * 2048  # tokens a batch
# layers, width, heads, learning rate, batch, tokens until the batch is full (None: full from the
# start)
TRAINING = {
    "gpt1": (12, 768, 12, 2.5e-4, 64 * 512, None),
    "gpt2-small": (12, 768, 12, 6e-4, 512 * 1024, None),
    "gpt2-medium": (24, 1024, 16, 3e-4, 512 * 1024, None),
    "gpt2-large": (36, 1280, 20, 2.5e-4, 512 * 1024, None),
    "gpt2-xl": (48, 1600, 25, 2e-4, 512 * 1024, None),
    "gpt3-small": (12, 768, 12, 6e-4, HALF, 4 * B),
    "gpt3-medium": (24, 1024, 16, 3e-4, HALF, 4 * B),
    "gpt3-large": (24, 1536, 16, 2.5e-4, HALF, 4 * B),
    "gpt3-xl": (24, 2048, 16, 2e-4, ONE, 4 * B),
    "gpt3-2.7b": (32, 2560, 32, 1.6e-4, ONE, 8 * B),
    "gpt3-6.7b": (32, 4096, 32, 1.2e-4, TWO, 8 * B),
    "gpt3-13b": (40, 5120, 40, 1e-4, TWO, 12 * B),
    "gpt3-175b": (96, 12288, 96, 0.6e-4, THREE, 12 * B),
}
# style, vocabulary, context, dropout, tokens, warm-up, tokens of the cosine, its end, betas, decay,
# clip
OF_FAMILY = {
    "gpt1": (
        "gpt1",
        40_478,
        512,
        0.1,
        10**6 * 64 * 512,
        2000 * 64 * 512,
        None,
        0.0,
        (0.9, 0.999),
        0.01,
        1.0,
    ),
    "gpt2": (
        "gpt2",
        50_257,
        1024,
        0.0,
        300 * B,
        2000 * 512 * 1024,
        None,
        0.1,
        (0.9, 0.95),
        0.1,
        1.0,
    ),
    "gpt3": ("gpt2", 50_257, 2048, 0.0, 300 * B, 375 * M, 260 * B, 0.1, (0.9, 0.95), 0.1, 1.0),
}


def decoder(family: str, **fields: object) -> GPT:
    shape = {
        "layers": 2,
        "width": 32,
        "heads": 4,
        "context": 24,
        "vocab_size": 50,
        "dropout": 0.0,
        **fields,
    }
    return GPT(ModelConfig.model_validate({"family": family, **shape}), seed=3)


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_size_has_the_papers_number_of_parameters(name: str) -> None:
    config = ModelConfig.published(name)
    assert set(PUBLISHED) == set(COUNTS)
    assert config.parameters() == COUNTS[name]
    with torch.device("meta"):
        assert sum(weight.numel() for weight in GPT(config).parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", TRAINING)
def test_a_published_size_is_trained_as_its_paper_says(name: str) -> None:
    """The recipe as it is loaded: what a wrong figure in recipes/*.yaml would be found by."""
    recipe = load_recipe(name)
    assert (
        set(TRAINING)
        == set(COUNTS)
        == {path.stem for path in RECIPES.glob("gpt[123]*.yaml") if not path.stem.endswith("tiny")}
    )
    assert recipe.tokenizer is not None
    (model, trained), whole, family = (
        recipe.model_and_training,
        recipe.model_config_for(),
        name.partition("-")[0],
    )
    ramp = (
        (trained.batch_ramp.from_tokens, trained.batch_ramp.over_tokens)
        if trained.batch_ramp
        else None
    )
    layers, width, heads, rate, batch, ramped = TRAINING[name]
    assert (
        model.layers,
        model.width,
        model.heads,
        trained.learning_rate,
        trained.batch_tokens,
    ) == (layers, width, heads, rate, batch)
    assert ramp == (ramped and (32_768, ramped))
    assert OF_FAMILY[family] == (
        recipe.tokenizer.style,
        recipe.tokenizer.vocab_size,
        model.context,
        model.dropout,
        trained.tokens,
        trained.warmup_tokens,
        trained.decay_tokens,
        trained.final_learning_rate,
        trained.betas,
        trained.weight_decay,
        trained.gradient_clip,
    )
    assert whole.parameters() == COUNTS[name] and whole == ModelConfig.published(name)


def test_gpt1_is_fine_tuned_as_its_paper_says() -> None:
    """Section 4.1: twelve tasks, 3 epochs, batch 32, 6.25e-5, 0.2 % of warm-up, dropout 0.1, lambda
    0.5, decay 0.01.
    """
    section = load_recipe("gpt1").finetuning
    assert section is not None and len(section.tasks) == 12
    assert (section.epochs, section.batch, section.learning_rate, section.warmup) == (
        3,
        32,
        6.25e-5,
        0.002,
    )
    assert (
        section.dropout,
        section.auxiliary_weight,
        section.weight_decay,
        section.gradient_clip,
    ) == (0.1, 0.5, 0.01, 1.0)


def test_the_page_of_the_family_has_the_sizes_and_marks_what_is_unverified() -> None:
    lines = (ROOT / "docs" / "papers" / "family.md").read_text().splitlines()
    rows = [
        line.split("|")[1:-1]
        for line in lines
        if line.startswith(("| gpt1 ", "| gpt2-", "| gpt3-"))
    ]
    sizes = {
        name.strip(): [cell.strip() for cell in cells] for name, *cells in rows if len(cells) == 5
    }
    assert set(sizes) == set(COUNTS)
    for name, cells in sizes.items():
        model = PUBLISHED[name]
        numbers = [int(cell.replace(",", "").removesuffix(" †")) for cell in cells]
        assert numbers == [COUNTS[name], model.layers, model.width, model.heads, model.context], (
            name
        )
    marked = {
        (name, number)
        for name, cells in sizes.items()
        for number, cell in enumerate(cells)
        if cell.endswith("†")
    }
    heads, width = 3, 2
    assert marked == {
        *((name, heads) for name in ("gpt2-medium", "gpt2-large", "gpt2-xl", "gpt3-xl")),
        ("gpt3-13b", width),
    }


def test_bands_and_missing_biases_are_gpt3s_alone() -> None:
    assert PUBLISHED["gpt3-small"].band == DEFAULT_BAND and PUBLISHED["gpt2-small"].band is None
    with pytest.raises(ValidationError, match="band belongs to family gpt3, and this is gpt2"):
        decoder("gpt2", band=4)
    with pytest.raises(
        ValidationError, match="attention_bias belongs to family gpt3, and this is gpt1"
    ):
        decoder("gpt1", attention_bias=False)
    lean = decoder("gpt3", band=4, attention_bias=False)
    assert lean.h[0].attn.c_attn.bias is None
    assert sum(weight.numel() for weight in lean.parameters()) == lean.config.parameters()


def written_out(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    """The network by the papers' formulas alone: a row of tokens, head after head, position after
    position.
    """
    first = model.config.family == "gpt1"
    x = model.wte.weight[tokens] + model.wpe.weight[: len(tokens)]
    for layer, block in enumerate(model.h):
        band = model.config.band_of(layer) or len(tokens)

        def attend(
            states: torch.Tensor, block: torch.nn.Module = block, band: int = band
        ) -> torch.Tensor:
            bias = 0 if block.attn.c_attn.bias is None else block.attn.c_attn.bias
            query, key, value = (states @ block.attn.c_attn.weight + bias).chunk(3, dim=-1)
            mixed = torch.zeros_like(states)
            for head in torch.arange(states.shape[1]).chunk(model.config.heads):
                for i in range(len(states)):
                    seen = slice(max(0, i - band + 1), i + 1)
                    weights = (key[seen][:, head] @ query[i, head] / len(head) ** 0.5).softmax(0)
                    mixed[i, head] = weights @ value[seen][:, head]
            return mixed @ block.attn.c_proj.weight + block.attn.c_proj.bias

        def widen(states: torch.Tensor, mlp: torch.nn.Module = block.mlp) -> torch.Tensor:
            wide = F.gelu(states @ mlp.c_fc.weight + mlp.c_fc.bias, approximate="tanh")
            return wide @ mlp.c_proj.weight + mlp.c_proj.bias

        if first:
            x = block.ln_1(x + attend(x))
            x = block.ln_2(x + widen(x))
        else:
            x = x + attend(block.ln_1(x))
            x = x + widen(block.ln_2(x))
    return (x if first else model.ln_f(x)) @ model.wte.weight.T


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gpt1", {}),
        ("gpt2", {}),
        ("gpt3", {"band": 5}),
        ("gpt3", {"band": 7, "attention_bias": False}),
    ],
)
def test_the_network_is_the_papers_formula(family: str, fields: dict[str, object]) -> None:
    model = decoder(family, **fields).double().eval()
    with torch.no_grad():
        for weight in model.parameters():  # every bias and gain has its say
            weight.add_(
                torch.randn(
                    weight.shape,
                    generator=torch.Generator().manual_seed(weight.numel()),
                    dtype=weight.dtype,
                )
                * 0.1
            )
        tokens = torch.randint(0, 50, (2, 20), generator=torch.Generator().manual_seed(1))
        expected = torch.stack([written_out(model, row) for row in tokens])
        assert (model(tokens) - expected).abs().max() < 1e-10
        cache = model.new_cache(2)
        in_steps = torch.cat(
            [model.hidden(part, cache) for part in tokens.split([7, 1, 5, 7], dim=1)], 1
        )
        assert (F.linear(in_steps, model.wte.weight) - expected).abs().max() < 1e-10
        targets = torch.randint(0, 50, tokens.shape, generator=torch.Generator().manual_seed(2))
    assert (
        abs(
            model.loss(tokens, targets) - F.cross_entropy(expected.flatten(0, 1), targets.flatten())
        )
        < 1e-10
    )


def test_weights_begin_as_each_paper_has_them() -> None:
    of_768 = 0.02 * 6**0.5  # at a sixth of GPT-1's width
    for family, location, residual, others in (
        ("gpt1", 0.02, of_768, of_768),
        ("gpt2", 0.01, 0.02 / 16**0.5, 0.02),
        ("gpt3", 0.01, 0.02 / 16**0.5, 0.02),
    ):
        model = decoder(family, layers=8, width=128, context=256)
        spread = {
            name: float(weight.detach().std())
            for name, weight in model.named_parameters()
            if weight.dim() == 2
        }
        assert spread["wpe.weight"] == pytest.approx(location, rel=0.05)
        assert spread["wte.weight"] == pytest.approx(0.02, rel=0.05)
        assert spread["h.3.mlp.c_proj.weight"] == pytest.approx(residual, rel=0.05)
        assert spread["h.7.attn.c_attn.weight"] == pytest.approx(others, rel=0.05)
    with torch.device("meta"):
        assert GPT(ModelConfig.published("gpt1")).init_std("h.0.attn.c_attn.weight") == 0.02


def test_gpt1_drops_elements_of_the_embedding_matrix_which_is_looked_up_and_is_the_head() -> None:
    model = decoder("gpt1", dropout=0.25, layers=1, width=64)
    tokens = torch.arange(20)[None]
    torch.manual_seed(0)
    rows, locations = model.embeddings()
    share = float((rows == 0).float().mean())
    assert 0.2 < share < 0.3
    torch.testing.assert_close(rows[rows != 0], (model.wte.weight / 0.75)[rows != 0])
    for block in model.h:
        block.dropout = block.attn.dropout = 0.0  # so that what is left is the matrix's own
    torch.manual_seed(0)
    loss = model.loss(tokens, tokens.roll(1))
    states = model.hidden(tokens, embeddings=(rows, locations))
    assert torch.equal(loss, model.loss(tokens, tokens.roll(1))) is False  # drawn anew each pass
    assert float(loss) == pytest.approx(
        float(F.cross_entropy(states[0] @ rows.T, tokens.roll(1)[0])), abs=1e-5
    )
    model.eval()
    assert model.embeddings()[0] is model.wte.weight


def test_a_banded_layer_does_not_see_beyond_its_band_and_a_dense_one_does() -> None:
    model = decoder("gpt3", band=5).eval()
    states = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(4))
    changed = states.clone()
    changed[0, 3] += 1
    with torch.no_grad():
        moved = [
            (block.attn(changed, None) - block.attn(states, None)).abs().amax(-1)[0] > 1e-7
            for block in model.h
        ]
    assert moved[0].nonzero().flatten().tolist() == list(range(3, 20))
    assert moved[1].nonzero().flatten().tolist() == list(range(3, 8))
