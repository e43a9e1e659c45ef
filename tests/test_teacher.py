"""Bijections, likelihood, decoding, guidance and denoising of the teacher."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from nfm.teacher.autoregressive import AutoregressiveBlock
from nfm.teacher.bijection import Affine, Bijection
from nfm.teacher.denoise import denoise, sample_teacher
from nfm.teacher.loss import bits_per_dim, teacher_loss
from nfm.teacher.sampler import TeacherSampler
from nfm.teacher.tarflow import TarFlow


def perturbed(model: nn.Module, scale: float = 0.2) -> nn.Module:
    """The model in float64 and away from its start, where it is the identity."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().requires_grad_(False)
    for parameter in model.parameters():
        change = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_(scale * change)
    return model


def random(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def make_block(classes: int | None, tokens: int = 4) -> AutoregressiveBlock:
    torch.manual_seed(0)
    return AutoregressiveBlock(tokens, 3, layers=2, width=16, head_size=8, classes=classes)


def make_tarflow(shape=(1, 4, 4), patch=(1, 4), blocks: int = 2, classes: int | None = 3) -> TarFlow:
    torch.manual_seed(0)
    return TarFlow(shape, patch, blocks, layers=1, width=16, head_size=8, classes=classes)


# Shape of an event, and how to make the bijection.
BIJECTIONS = {
    "affine": ((2, 3), lambda: Affine(random(2, 3), random(3))),
    "block": ((4, 3), lambda: make_block(3)),
    "unconditional block": ((4, 3), lambda: make_block(None)),
    "tarflow, rows": ((1, 4, 4), make_tarflow),
    "tarflow, squares": ((3, 4, 4), lambda: make_tarflow((3, 4, 4), (2, 2), blocks=3)),
    "unconditional tarflow": ((1, 4, 4), lambda: make_tarflow(classes=None)),
}
every_bijection = pytest.mark.parametrize(("event", "make"), BIJECTIONS.values(), ids=BIJECTIONS.keys())
LABEL = torch.tensor([2, 0, 1])
DROPPED = torch.tensor([False, True, False])


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # Some thousand float64 operations, with scales exp(a) of up to about a hundred.
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@every_bijection
@pytest.mark.parametrize("dropped", [None, DROPPED], ids=["labels", "some dropped"])
def test_decode_undoes_encode_and_encode_decode(event, make, dropped):
    bijection, x = perturbed(make()), random(3, *event)
    close(bijection.decode(bijection.encode(x, LABEL, dropped)[0], LABEL, dropped), x)
    close(bijection.encode(bijection.decode(x, LABEL, dropped), LABEL, dropped)[0], x)


@every_bijection
def test_log_det_matches_the_autograd_jacobian(event, make):
    bijection, x = perturbed(make()), random(3, *event)
    z, log_det = bijection.encode(x, LABEL, DROPPED)
    jacobian = torch.autograd.functional.jacobian(lambda x: bijection.encode(x, LABEL, DROPPED)[0], x).reshape(
        3, z[0].numel(), 3, z[0].numel()
    )
    expected = [torch.linalg.slogdet(jacobian[i, :, i]).logabsdet for i in range(3)]
    close(log_det, torch.stack(expected))
    assert not jacobian[0, :, 1:].any()  # an image does not look at others


@pytest.mark.parametrize("make", [lambda: make_block(3), make_tarflow])
def test_an_untrained_teacher_is_the_identity(make):
    model = make().double()
    x = random(3, 4, 3) if isinstance(model, AutoregressiveBlock) else random(3, 1, 4, 4)
    z, log_det = model.encode(x, LABEL)
    assert torch.equal(z, x)
    assert not log_det.any()


def test_a_block_scales_and_shifts_a_token_by_those_before_it_only():
    block, x = perturbed(make_block(3)), random(1, 4, 3)
    jacobian = torch.autograd.functional.jacobian(lambda x: block.encode(x, LABEL[:1])[0], x)
    jacobian = jacobian[0, :, :, 0].transpose(1, 2)  # (to, from, 3, 3)
    for i in range(4):
        for j in range(4):
            if j > i:
                assert not jacobian[i, j].any()
            elif j == i:  # (x_i - b_i) exp(-a_i): a positive scale of each number by itself
                scale = jacobian[i, i].diagonal()
                assert (scale > 0).all()
                assert torch.equal(jacobian[i, i], torch.diag(scale))
            else:
                assert jacobian[i, j].all()
    assert torch.equal(jacobian[0, 0], torch.eye(3).double())


def test_every_other_block_sees_the_tokens_reversed():
    reach = []
    for blocks in (1, 2):
        model = perturbed(make_tarflow(blocks=blocks))
        jacobian = torch.autograd.functional.jacobian(
            lambda x, model=model: model.encode(x, LABEL[:1])[0], random(1, 1, 4, 4)
        )
        reach.append(jacobian[0, 0, :, :, 0, 0].abs().amax((1, 3)) > 0)  # (to row, from row)
    assert torch.equal(reach[0], torch.ones(4, 4).tril().bool())
    assert reach[1].all()


def scale_and_shift(block: Bijection, x: torch.Tensor, i: int, label: torch.Tensor | None):
    """a_i and b_i, read off two whole-sequence encodings that differ in token i."""
    zero, one = x.clone(), x.clone()
    zero[:, i], one[:, i] = 0, 1
    y_0, y_1 = block.encode(zero, label)[0][:, i], block.encode(one, label)[0][:, i]
    return -torch.log(y_1 - y_0), -y_0 / (y_1 - y_0)


@pytest.mark.parametrize("guidance", [0.0, 0.7, -1.0, 2.0])
def test_cached_decoding_equals_decoding_by_whole_sequences(guidance):
    block, z = perturbed(make_block(3)), random(3, 4, 3)
    x = z.clone()
    for i in range(1, 4):
        a, b = scale_and_shift(block, x, i, LABEL)
        a_u, b_u = scale_and_shift(block, x, i, None)
        a, b = a + guidance * (a - a_u), b + guidance * (b - b_u)
        x[:, i] = z[:, i] * torch.exp(a) + b
    close(block.decode(z, LABEL, guidance=guidance), x)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("chunk", [2, 3, 4, 8, 100])
def test_tokens_in_chunks_decode_as_one_after_the_other(chunk, guidance):
    block, z = perturbed(make_block(3, tokens=9)), random(3, 9, 3)
    close(block.decode(z, LABEL, guidance=guidance, chunk=chunk), block.decode(z, LABEL, guidance=guidance))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("chunk", "guidance"), [(1, 0.0), (1, 1.5), (3, 0.0)])
def test_batch_after_batch_decodes_to_the_same_bits_on_any_device(chunk, guidance, labelled):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # a GPU replays from the second of a shape on
    model = perturbed(make_tarflow(blocks=3)).to(device)
    sampler = TeacherSampler(model, guidance=guidance, chunk=chunk)
    for i, count in enumerate((3, 3, 2, 3, 2, 2)):
        z = (random(3, 1, 4, 4)[:count] + i).to(device)
        label = ((LABEL + i) % 3)[:count].to(device) if labelled else None
        assert torch.equal(sampler(z, label), sample_teacher(model, z, label, guidance=guidance, chunk=chunk))


def test_sweeps_end_where_nothing_changes_by_more_than_the_tolerance():
    block, z = perturbed(make_block(None, tokens=9)), random(3, 9, 3)
    with torch.no_grad():
        block.head.weight.mul_(0.2)  # tokens that depend on one another weakly settle early
    calls, step = [], block.decode_step
    block.decode_step = lambda known, *rest: calls.append(known.shape[1]) or step(known, *rest)
    exact = block.decode(z, chunk=8)
    assert calls == [8] * len(calls)
    assert len(calls) <= 8
    exact_calls = len(calls)
    calls.clear()
    rough = block.decode(z, chunk=8, tolerance=1e-2)
    assert len(calls) < exact_calls
    assert 0 < (rough - exact).abs().max() < 0.1
    calls.clear()
    block.decode(z)
    assert calls == [1] * 8


def test_a_decoding_step_leaves_what_the_cache_held():
    block, x = perturbed(make_block(None)), random(3, 4, 3)
    *_, cache = block.decode_step(x[:, :1], 1, None, block.room(3, x))
    kept = [layer.both[..., :1, :].clone() for layer in cache]
    first = block.decode_step(x[:, 1:2], 2, None, cache)
    second = block.decode_step(x[:, 1:2], 2, None, cache)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    for layer, both in zip(cache, kept, strict=True):
        assert layer.seen == 1
        assert torch.equal(layer.both[..., :1, :], both)


def test_guidance_has_the_plain_and_the_unconditional_samples_as_limits():
    model, z = perturbed(make_tarflow()), random(3, 1, 4, 4)
    plain, none = model.decode(z, LABEL), model.decode(z)
    close(sample_teacher(model, z, LABEL), plain)
    close(sample_teacher(model, z, LABEL, guidance=-1.0), none)
    close(sample_teacher(model, z, guidance=2.0), none)
    assert not torch.allclose(model.decode(z, LABEL, guidance=0.5), plain, atol=1e-3)
    unconditional = perturbed(make_tarflow(classes=None))
    assert torch.equal(unconditional.decode(z, LABEL, guidance=2.0), unconditional.decode(z))


def test_a_dropped_label_is_no_label_and_labels_matter():
    model, x = perturbed(make_tarflow()), random(3, 1, 4, 4)
    everything = torch.ones(3).bool()
    for run in (model.decode, model.log_prob):
        close(run(x, LABEL, everything), run(x))
        mixed = run(x, LABEL, DROPPED)
        close(mixed[DROPPED], run(x)[DROPPED])
        close(mixed[~DROPPED], run(x, LABEL)[~DROPPED])
        assert not torch.allclose(run(x, LABEL), run(x), atol=1e-3)
        assert not torch.allclose(run(x, LABEL), run(x, (LABEL + 1) % 3), atol=1e-3)


def test_the_density_integrates_to_one():
    model = perturbed(make_tarflow((1, 2, 1), (1, 1), classes=None), 0.1)
    axis = torch.linspace(-12, 12, 241, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis).reshape(-1, 1, 2, 1)
    mass = model.log_prob(x).exp().sum().item() * (axis[1] - axis[0]).item() ** 2
    # Sums over a grid are near exact for a smooth density that is zero at the border.
    assert mass == pytest.approx(1, abs=1e-7)


def test_a_patch_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"patch is \(3, 4\)"):
        make_tarflow(patch=(3, 4))
    with pytest.raises(ValueError, match="tokens is 1, expected 2 or more"):
        make_tarflow(patch=(4, 4))


def test_under_autocast_the_log_det_is_still_that_of_the_map():
    block, x = perturbed(make_block(3)).float(), random(3, 4, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        log_det = block(x, LABEL)[1]
        scales = [scale_and_shift(block, x, i, LABEL)[0] for i in range(1, 4)]
    # Sums of nine float32 log-scales; in bfloat16 they would be off in the third digit.
    torch.testing.assert_close(log_det, -torch.cat(scales, 1).sum(1), rtol=1e-4, atol=1e-4)


MEAN = torch.tensor([0.3, -0.5, 0.1, 0.0], dtype=torch.float64)
STD = torch.tensor([0.2, 0.5, 1.0, 0.1], dtype=torch.float64)
NOISE_STD = 0.3
NOISED = Affine(MEAN, 0.5 * torch.log(STD**2 + NOISE_STD**2))  # N(MEAN, STD^2) plus noise to N(0, I)


def test_denoising_is_the_posterior_mean_of_a_gaussian():
    y = random(5, 4)
    gain = STD**2 / (STD**2 + NOISE_STD**2)
    with torch.no_grad():
        clean = denoise(NOISED, y, None, NOISE_STD)
    close(clean, MEAN + gain * (y - MEAN))
    assert not clean.requires_grad
    assert not y.requires_grad


def test_denoising_follows_the_score_of_the_label_given():
    model, y, step = perturbed(make_tarflow()), random(3, 1, 4, 4), 1e-5
    clean = denoise(model, y, LABEL, 0.5)
    moved = y.clone()
    moved[:, 0, 1, 2] += step
    slope = (model.log_prob(moved, LABEL) - model.log_prob(y, LABEL)) / step
    # A forward difference: its error is of the order of the step.
    torch.testing.assert_close((clean - y)[:, 0, 1, 2], 0.25 * slope, rtol=1e-3, atol=1e-3)


def gaussian_loss(model: Bijection) -> float:
    generator = torch.Generator().manual_seed(2)
    data = MEAN + STD * torch.randn(50_000, 4, generator=generator, dtype=torch.float64)
    return teacher_loss(model, data, None, generator, noise_std=NOISE_STD, label_drop=0.1).item()


def test_the_loss_of_the_right_density_is_its_entropy():
    entropy = 0.5 + NOISED.log_scale.mean().item()  # per dimension, without log(2 pi) / 2
    # Half the mean of 2e5 squares: deviation sqrt(2 / 2e5) / 2 = 0.0016, five times over.
    assert gaussian_loss(NOISED) == pytest.approx(entropy, abs=0.008)


@pytest.mark.parametrize(("shift", "scale"), [(0.2, 0.0), (0.0, 0.3), (-0.1, -0.2)])
def test_the_loss_of_another_density_is_larger_by_the_divergence(shift, scale):
    # KL of N(0, 1) from N(shift / std, e^(2 scale)), per dimension.
    std = NOISED.log_scale.exp()
    divergence = scale + 0.5 * ((1 + (shift / std) ** 2) * math.exp(-2 * scale) - 1)
    other = Affine(MEAN + shift, NOISED.log_scale + scale)
    excess = gaussian_loss(other) - gaussian_loss(NOISED)
    assert excess == pytest.approx(divergence.mean().item(), abs=0.008)


class Recorder(Bijection):
    """The identity, which keeps what it was called with."""

    def encode(self, x, label=None, dropped=None):
        self.x, self.dropped = x, dropped
        return x, x.new_zeros(len(x))

    def decode(self, z, label=None, dropped=None):
        return z


def test_the_loss_adds_noise_and_drops_labels_as_asked():
    model, label = Recorder(), torch.zeros(40_000, dtype=torch.long)
    data = torch.zeros(40_000, 1, dtype=torch.float64)
    teacher_loss(model, data, label, torch.Generator(), noise_std=0.3, label_drop=0.1)
    # A right sample fails this for one seed in ten thousand.
    assert stats.kstest(model.x.flatten().numpy(), "norm", (0, 0.3)).pvalue > 1e-4
    assert abs(model.dropped.double().mean().item() - 0.1) < 5 * (0.1 * 0.9 / 40_000) ** 0.5
    teacher_loss(model, data, None, torch.Generator(), noise_std=0.3, label_drop=0.1)
    assert model.dropped is None


def test_bits_per_dim_is_the_likelihood_on_the_scale_of_levels():
    levels = torch.tensor([[10.0, 200.0, 127.5, 90.0], [0.0, 255.0, 33.0, 140.0]]).double()
    mean, std = (MEAN + 1) * 127.5, NOISED.log_scale.exp() * 127.5
    expected = -stats.norm.logpdf(levels, mean, std).mean(1) / math.log(2)
    close(bits_per_dim(NOISED, levels / 127.5 - 1), torch.from_numpy(expected))


def test_training_reaches_the_entropy_of_correlated_data():
    # Two pixels of correlation 0.9: a model that takes them as independent stays 0.41 nats above.
    generator = torch.Generator().manual_seed(0)
    model = make_tarflow((1, 2, 1), (1, 1), classes=None)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    mix = torch.linalg.cholesky(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    losses = []
    for _ in range(200):
        data = (torch.randn(256, 2, generator=generator) @ mix.T).reshape(-1, 1, 2, 1)
        loss = teacher_loss(model, data, None, generator, noise_std=0.01, label_drop=0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    entropy = 0.5 + 0.25 * math.log(1 - 0.9**2)
    # The mean of 50 batches of 256 pairs deviates by 0.004; training ends within a few hundredths.
    assert sum(losses[-50:]) / 50 == pytest.approx(entropy, abs=0.05)
