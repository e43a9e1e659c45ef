"""The path, the velocity network, guidance and the flow-matching loss."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch._dynamo.utils import counters

from nfm.student.fast import fast
from nfm.student.loss import one_step_loss, student_loss
from nfm.student.path import interpolate, logit_normal
from nfm.student.velocity import SiT, guided

SHAPES = {
    "rows": ((1, 4, 4), (1, 4)),
    "squares": ((3, 4, 4), (2, 2)),
}


def perturbed(shape=(1, 4, 4), patch=(1, 4), classes: int | None = 3, *, scale: float = 0.3) -> SiT:
    torch.manual_seed(0)
    model = SiT(shape, patch, depth=2, width=16, head_size=8, classes=classes).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.requires_grad_(False)


def inputs(count=4, shape=(1, 4, 4)):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    t = torch.rand(count, generator=generator, dtype=torch.float64)
    return x, t, torch.arange(count) % 3


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # Some thousand float64 operations on numbers near one.
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_the_velocity_is_the_time_derivative_of_the_path():
    data, t, _ = inputs()
    noise = data.flip(0) * 2 - 1
    (x_t, v_t), (speed, _) = torch.func.jvp(lambda t: interpolate(data, noise, t), (t,), (torch.ones_like(t),))
    close(v_t, speed)
    close(x_t + (1 - t).reshape(-1, 1, 1, 1) * v_t, noise)
    close(x_t - t.reshape(-1, 1, 1, 1) * v_t, data)


def test_the_path_starts_at_the_data_and_ends_at_the_noise():
    data, _, _ = inputs()
    noise = data.flip(0)
    assert torch.equal(interpolate(data, noise, torch.zeros(4).double())[0], data)
    assert torch.equal(interpolate(data, noise, torch.ones(4).double())[0], noise)


def test_times_are_logit_normal():
    generator = torch.Generator().manual_seed(0)
    t = logit_normal(5_000, generator, mean=-0.2, std=0.7, dtype=torch.float64)
    # A right sample fails this for one seed in ten thousand.
    assert stats.kstest(torch.logit(t).numpy(), "norm", (-0.2, 0.7)).pvalue > 1e-4


def test_an_untrained_velocity_is_zero():
    x, t, label = inputs()
    model = SiT((1, 4, 4), (1, 4), depth=2, width=16, head_size=8, classes=3).double()
    assert not model(x, t, label).any()


@pytest.mark.parametrize(("shape", "patch"), SHAPES.values(), ids=SHAPES.keys())
def test_every_pixel_of_the_velocity_sees_every_pixel_and_no_other_image(shape, patch):
    model = perturbed(shape, patch)
    x, t, label = inputs(2, shape)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, t, label), x)
    d = x[0].numel()
    jacobian = jacobian.reshape(2, d, 2, d)
    assert jacobian[0, :, 0].all()
    assert jacobian[1, :, 1].all()
    assert not jacobian[0, :, 1].any()
    assert not jacobian[1, :, 0].any()


def test_the_velocity_changes_with_time_and_label_and_knows_where_tokens_are():
    model = perturbed()
    x, t, label = inputs()
    v = model(x, t, label)
    assert ((model(x, t + 0.1, label) - v).abs().amax((1, 2, 3)) > 1e-3).all()
    assert ((model(x, t, (label + 1) % 3) - v).abs().amax((1, 2, 3)) > 1e-3).all()
    assert ((model(x.flip(2), t, label) - v.flip(2)).abs().amax((1, 2, 3)) > 1e-3).all()


def test_a_dropped_label_is_no_label():
    model = perturbed()
    x, t, label = inputs()
    none = model(x, t, None)
    close(model(x, t, label, torch.ones(4).bool()), none)
    dropped = torch.tensor([True, False, False, True])
    mixed = model(x, t, label, dropped)
    close(mixed[dropped], none[dropped])
    close(mixed[~dropped], model(x, t, label)[~dropped])


def test_an_unconditional_network_takes_no_notice_of_labels():
    model = perturbed(classes=None)
    x, t, label = inputs()
    assert torch.equal(model(x, t, label), model(x, t))


def test_a_patch_that_does_not_divide_the_image_is_named():
    with pytest.raises(ValueError, match=r"patch is \(3, 4\)"):
        SiT((1, 8, 8), (3, 4), depth=1, width=16, head_size=8, classes=None)


GUIDANCE = {
    "unconditional": (0.0, lambda c, u: u),
    "half": (0.5, lambda c, u: (c + u) / 2),
    "conditional": (1.0, lambda c, u: c),
    "double": (2.0, lambda c, u: 2 * c - u),
}


@pytest.mark.parametrize(("weight", "expected"), GUIDANCE.values(), ids=GUIDANCE.keys())
def test_guidance_goes_from_the_unconditional_through_the_conditional_velocity(weight, expected):
    model = perturbed()
    x, t, label = inputs()
    v = guided(model, label, weight)(x, t)
    close(v, expected(model(x, t, label), model(x, t, None)))


def test_one_guided_evaluation_calls_the_network_once():
    model, sizes = perturbed(), []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    x, t, label = inputs()
    for weight in (1.0, 3.0, 0.0):
        guided(model, label, weight)(x, t)
    assert sizes == [4, 8, 4]


def test_guidance_without_labels_is_the_plain_velocity():
    model = perturbed(classes=None)
    x, t, _ = inputs()
    assert torch.equal(guided(model, None, 3.0)(x, t), model(x, t))


MEAN, VARIANCE = 0.4, 0.3  # of Gaussian data, whose best velocity is known


def best_velocity(x_t, t, label=None, dropped=None):
    """E[z - x | x_t] for x ~ N(MEAN, VARIANCE) and z ~ N(0, 1), independent."""
    t = t.reshape(-1, *[1] * (x_t.ndim - 1))
    spread = (1 - t) ** 2 * VARIANCE + t**2
    return -MEAN + (t - (1 - t) * VARIANCE) / spread * (x_t - (1 - t) * MEAN)


def gaussian_loss(model, count: int = 50_000) -> float:
    generator = torch.Generator().manual_seed(3)
    x, z = torch.randn(2, count, 2, generator=generator, dtype=torch.float64)
    loss = student_loss(
        model,
        MEAN + VARIANCE**0.5 * x,
        z,
        None,
        generator,
        time_mean=-0.2,
        time_std=1.0,
        label_drop=0.1,
    )
    return loss.item()


def test_the_best_loss_is_the_conditional_variance_of_the_velocity():
    # Var(z - x | x_t) = VARIANCE / Var(x_t), averaged over the law of times by quadrature.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    t = 1 / (1 + np.exp(0.2 - nodes))
    expected = np.average(VARIANCE / ((1 - t) ** 2 * VARIANCE + t**2), weights=weights)
    # 1e5 squares of Gaussians: a relative deviation of about sqrt(2 / 1e5), five times over.
    assert gaussian_loss(best_velocity) == pytest.approx(expected, rel=0.025)


@pytest.mark.parametrize("change", [0.5, -0.5])
def test_the_loss_is_least_at_the_conditional_mean(change):
    excess = gaussian_loss(lambda x, t, *_: best_velocity(x, t) + change)
    tilted = gaussian_loss(lambda x, t, *_: best_velocity(x, t) * (1 + change))
    least = gaussian_loss(best_velocity)
    # The residual's mean over 1e5 draws is about 0.003; times 2 * 0.5, five times over.
    assert excess - least == pytest.approx(change**2, abs=0.016)
    assert tilted > least + 0.05


def test_one_euler_step_of_the_best_one_step_student_ends_at_the_conditional_mean_of_the_data():
    """For x ~ N(MEAN, VARIANCE) and noise z = x + a draw of variance 0.1, the mean of x given z is known."""
    generator = torch.Generator().manual_seed(5)
    x, noise = torch.randn(2, 50_000, 2, generator=generator, dtype=torch.float64)
    x = MEAN + VARIANCE**0.5 * x
    z = x + 0.1**0.5 * noise

    def mean(z):
        return MEAN + VARIANCE / (VARIANCE + 0.1) * (z - MEAN)

    def loss(change):
        times = []

        def model(z, t, label, dropped):
            times.append(t)
            return z - mean(z) - change

        value = one_step_loss(model, x, z, None, generator, label_drop=0.1).item()
        assert times[0].tolist() == [1.0] * len(x)  # the step that Euler's method takes from t = 1
        return value

    least = VARIANCE * 0.1 / (VARIANCE + 0.1)  # Var(x | z); 1e5 squares, five times their deviation
    assert loss(0.0) == pytest.approx(least, rel=0.025)
    # The residual's mean over 1e5 draws has deviation .27 / 316; times 2 * 0.3, five times over.
    assert loss(0.3) - loss(0.0) == pytest.approx(0.09, abs=0.003)


def test_the_loss_drops_labels_as_often_as_asked():
    seen = []

    def model(x, t, label, dropped):
        seen.append(dropped)
        return x

    x, label = torch.zeros(40_000, 1), torch.zeros(40_000, dtype=torch.long)
    law = {"time_mean": 0.0, "time_std": 1.0}
    for share in (0.1, 0.0):
        student_loss(model, x, x, label, torch.Generator(), **law, label_drop=share)
    assert abs(seen[0].double().mean().item() - 0.1) < 5 * (0.1 * 0.9 / 40_000) ** 0.5
    assert seen[1] is None


def test_noise_is_drawn_anew_below_a_time_and_as_often_as_asked():
    seen = []

    def model(x, t, label, dropped):
        seen.append((x / t[:, None], t))  # the noise, since the data are 0
        return x

    data, noise = torch.zeros(40_000, 2), torch.full((40_000, 2), 9.0)
    law = {"time_mean": 0.0, "time_std": 1.0, "label_drop": 0.0}
    for share in (0.3, 1.0):
        student_loss(model, data, noise, None, torch.Generator(), **law, share=share, below=0.4)
        z, t = seen.pop()
        anew = (z - 9).abs().amax(1) > 1e-3
        assert not anew[t >= 0.4].any()
        near = anew[t < 0.4].double()
        assert abs(near.mean().item() - share) <= 5 * (share * (1 - share) / len(near)) ** 0.5
        fresh = z[anew]
        assert fresh.std().item() == pytest.approx(1, abs=5 / (2 * fresh.numel()) ** 0.5)
        assert fresh.mean().abs() < 5 / fresh.numel() ** 0.5
    student_loss(model, data, noise, None, torch.Generator(), **law)
    torch.testing.assert_close(seen.pop()[0], noise)


def test_the_loss_is_a_function_of_the_generator():
    model = perturbed()
    x, _, label = inputs()

    def loss(seed):
        generator = torch.Generator().manual_seed(seed)
        law = {"time_mean": -0.2, "time_std": 1.0, "label_drop": 0.5}
        torch.rand(1)  # the global stream has no part in it
        return student_loss(model, x, x.flip(0), label, generator, **law).item()

    assert loss(0) == loss(0)
    assert loss(0) != loss(1)


def test_a_network_samples_in_bfloat16_to_its_digits_from_points_that_keep_theirs():
    model, (x, t, label) = perturbed(scale=0.1).float(), inputs()
    x, t = x.float(), t.float()
    exact, low = model(x, t, label), fast(model, bf16=True, compile=False)(x, t, label, None)
    assert low.dtype == torch.float32
    assert 0 < (low - exact).abs().max() < 0.05 * exact.abs().max()  # some dozen roundings at 2^-8


def test_a_compiled_network_gives_the_velocity_and_compiles_once_a_shape():
    model, (x, t, label) = perturbed(), inputs()
    torch._dynamo.reset()
    counters.clear()
    compiled = fast(model, bf16=False, compile=True, backend="aot_eager")
    with torch.no_grad():
        first = compiled(x, t, label, None)
        for moment in (t, 1 - t):
            close(compiled(x, moment, label, None), model(x, moment, label))
        close(first, model(x, t, label))
    assert counters["stats"]["unique_graphs"] == 1
