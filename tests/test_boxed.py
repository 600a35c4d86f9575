"""The lowest point of a parabola in a box, against all choices of which bounds hold it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablab.infer import _boxed

LOWEST = jax.jit(jax.vmap(_boxed.lowest))


def by_trying_all(matrix, slope, lower, upper):
    """The lowest value: each parameter free, or on one of its bounds."""
    lowest = 0.0
    for choice in itertools.product((0, 1, 2), repeat=len(slope)):
        place = np.array(choice)
        z = np.select([place == 1, place == 2], [lower, upper], 0.0)
        free = place == 0
        if not np.isfinite(z).all():
            continue
        if free.any():
            pull = slope[free] + matrix[np.ix_(free, ~free)] @ z[~free]
            z[free] = np.linalg.solve(matrix[np.ix_(free, free)], -pull)
        if (z >= lower - 1e-12).all() and (z <= upper + 1e-12).all():
            lowest = min(lowest, value(matrix, slope, z))
    return lowest


def value(matrix, slope, z):
    return slope @ z + 0.5 * z @ matrix @ z


def problem(size, rng):
    """A positive definite matrix, of any condition up to a million, in a box with a corner at 0."""
    root = rng.normal(size=(size, size))
    matrix = root @ root.T + 10.0 ** rng.uniform(-6.0, 0.0) * np.eye(size)
    unit = 1.0 / np.sqrt(np.diag(matrix))
    slope = rng.normal(size=size) * 10.0 ** rng.uniform(-2.0, 2.0)
    lower, upper = -(10.0 ** rng.uniform(-2.0, 1.0, size)), 10.0 ** rng.uniform(-2.0, 1.0, size)
    lower[rng.random(size) < 0.2], upper[rng.random(size) < 0.2] = -np.inf, np.inf
    held = rng.random(size) < 0.3
    lower, upper = (
        np.where(held & (slope > 0), 0.0, lower),
        np.where(held & (slope < 0), 0.0, upper),
    )
    return unit[:, None] * matrix * unit, slope, lower, upper, held


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_lowest_point_of_positive_parabolas(size):
    rng = np.random.default_rng(size)
    problems = [problem(size, rng) for _ in range(100)]
    points, decreases, negative = LOWEST(*map(np.stack, zip(*problems, strict=True)), np.ones(100))
    assert not negative.any()
    for given, z, decrease in zip(problems, np.array(points), decreases, strict=True):
        *parabola, lower, upper, _ = given
        assert (lower <= z).all() and (z <= upper).all()
        expected = by_trying_all(*parabola, lower, upper)
        assert value(*parabola, z) == pytest.approx(expected, rel=1e-8, abs=1e-12)
        assert -decrease == pytest.approx(value(*parabola, z), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_negative_curvature_is_left_downhill(size):
    rng = np.random.default_rng(size)
    matrix = rng.normal(size=(100, size, size))
    matrix = matrix + matrix.transpose(0, 2, 1)
    matrix[:, range(size), range(size)] = -1.0
    slope = rng.normal(size=(100, size))
    box = np.full((100, size), 3.0)
    held = np.zeros((100, size), bool)
    z, decrease, negative = LOWEST(matrix, slope, -box, box, held, np.ones(100))
    assert negative.all() and (np.abs(z) <= 3.0).all()
    assert (np.sum(z * slope, axis=1) < 0.0).all() and (decrease > 0.0).all()
    longer, *_ = LOWEST(matrix, slope, -1e9 * box, 1e9 * box, held, np.full(100, 4.0))
    usual, *_ = LOWEST(matrix, slope, -1e9 * box, 1e9 * box, held, np.ones(100))
    if size == 1:
        np.testing.assert_allclose(longer, 4.0 * usual)


def test_large_parabolas(monkeypatch):
    """Many bounds at once give the same point as one after the other."""
    monkeypatch.setattr(_boxed.linalg, "LARGE", 512)  # on a single processor it is none
    problem_and_one = *problem(512, np.random.default_rng(1)), np.ones(())
    found = jax.jit(_boxed.lowest)(*problem_and_one)
    expected = jax.jit(_boxed._active_set)(*problem_and_one)
    assert not found[2] and not expected[2]
    scale = np.abs(expected[0]).max()
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-8, atol=1e-9 * scale)
    assert float(found[1]) == pytest.approx(float(expected[1]), rel=1e-9)
    _, _, lower, upper, _ = problem_and_one[:5]
    assert _boxed._primal_dual(*map(jnp.asarray, problem_and_one[:5]))[
        2
    ]  # not one by one after all
    assert np.sum((found[0] == lower) | (found[0] == upper)) > 100


def test_large_parabolas_with_negative_curvature(monkeypatch):
    """Within the box, and with the decrease of a positive matrix with a larger diagonal."""
    monkeypatch.setattr(_boxed.linalg, "LARGE", 512)
    matrix, slope, lower, upper, held = problem(512, np.random.default_rng(1))
    matrix = matrix - 0.3 * np.diag(np.arange(len(slope)) % 7 == 0)
    assert np.linalg.eigvalsh(matrix)[0] < 0
    z, decrease, negative = jax.jit(_boxed.lowest)(matrix, slope, lower, upper, held, np.ones(()))
    assert negative and decrease > 0
    assert np.all((lower <= z) & (z <= upper))
    added, _ = _boxed.linalg.until_positive(jnp.array(matrix))
    assert float(decrease) == pytest.approx(-(slope @ z + z @ matrix @ z / 2 + added * z @ z / 2))


def test_nothing_to_fit():
    z, decrease, negative = _boxed.lowest(
        jnp.zeros((0, 0)), *[jnp.zeros(0)] * 3, jnp.zeros(0, bool), jnp.ones(())
    )
    assert z.shape == (0,) and decrease == 0.0 and not negative
