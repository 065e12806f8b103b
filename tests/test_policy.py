import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import compiled, normal

import lljax


def project_by_sorting(row):
    """The textbook algorithm (Held, Wolfe, Crowder 1974)."""
    descending = np.sort(row)[::-1]
    thresholds = (np.cumsum(descending) - 1) / np.arange(1, row.size + 1)
    return np.maximum(row - thresholds[np.flatnonzero(descending > thresholds)[-1]], 0)


@pytest.mark.parametrize("scale", [0, 1e-6, 0.01, 1, 1e4])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_projection_equals_the_sorting_algorithm(size, scale):
    rows = scale * np.random.default_rng(0).normal(size=(50, size)) + 1 / size
    projected = lljax.project_simplex(jnp.asarray(rows))
    expected = np.stack([project_by_sorting(row) for row in rows])
    np.testing.assert_allclose(projected, expected, atol=1e-12 * max(1, scale))


@pytest.mark.parametrize("scale", [1e-4, 1, 1e3, 1e7, 1e12, 1e30])
def test_projection_in_float32_is_a_distribution(scale):
    rows = scale * normal(1, (100, 4096), jnp.float32)
    projected = np.asarray(lljax.project_simplex(rows))
    assert projected.dtype == np.float32
    assert projected.min() >= 0
    np.testing.assert_allclose(projected.sum(axis=1, dtype=np.float64), 1, atol=2e-6)


def test_projection_of_one_huge_entry():
    row = jnp.full((4,), 0.25, jnp.float32)
    for huge in (1e12, 1e38):
        np.testing.assert_array_equal(lljax.project_simplex(row.at[2].set(huge)), [0, 0, 1, 0])
        without = lljax.project_simplex(row.at[2].set(-huge))
        np.testing.assert_allclose(without, [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_projection_in_16_bits_is_the_rounded_one(dtype):
    rows = normal(4, (3, 70_000), jnp.float32).astype(dtype)
    expected = lljax.project_simplex(rows.astype(jnp.float32)).astype(dtype)
    np.testing.assert_array_equal(lljax.project_simplex(rows), expected)
    lljax.check_policy(lljax.project_simplex(rows))


def test_projection_leaves_a_distribution_alone_and_keeps_ties_equal():
    policy = jax.nn.softmax(normal(0, (20, 30)))
    np.testing.assert_allclose(lljax.project_simplex(policy), policy, atol=1e-15)
    tied = lljax.project_simplex(jnp.array([[5.0, 5.0, 5.0, 1.0]]))
    np.testing.assert_allclose(tied, [[1 / 3, 1 / 3, 1 / 3, 0]], atol=1e-15)


def test_projection_under_jit_vmap_and_grad():
    rows = normal(2, (4, 3, 9))
    one_by_one = jnp.stack([lljax.project_simplex(matrix) for matrix in rows])
    np.testing.assert_allclose(compiled(jax.vmap(lljax.project_simplex))(rows), one_by_one)
    direction = normal(3, rows.shape)
    _, tangent = jax.jvp(lljax.project_simplex, (rows,), (direction,))
    ahead, behind = (lljax.project_simplex(rows + h * direction) for h in (1e-6, -1e-6))
    np.testing.assert_allclose(tangent, (ahead - behind) / 2e-6, atol=1e-8)
    gradient = jax.grad(lambda r: jnp.vdot(lljax.project_simplex(r), direction))(rows)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), jnp.vdot(tangent, direction))


def test_a_row_that_is_not_finite_stays_visible():
    rows = jnp.array([[jnp.nan, 0.0, 1.0], [0.2, 0.3, 0.5]])
    projected = lljax.project_simplex(rows)
    assert jnp.isnan(projected[0]).any()
    np.testing.assert_allclose(projected[1], rows[1], atol=1e-15)


def test_measures_of_a_row():
    rows = jnp.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(lljax.effective_sample_size(rows), [4, 1])
    np.testing.assert_allclose(lljax.entropy(rows), [np.log(4), 0])


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_an_empty_policy_is_refused(sizes):
    with pytest.raises(ValueError, match="must be an int, at least 1; got 0"):
        lljax.uniform_policy(*sizes)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([0.5, 0.6, -0.1], "row 1 has a negative entry"),
        ([0.5, 0.4, 0.0], "row 1 does not sum to 1"),
        ([0.5, 0.5, np.nan], "row 1 is not finite"),
    ],
)
def test_a_row_off_the_simplex_is_named(row, fault):
    with pytest.raises(ValueError, match=f"{fault}.*project_simplex"):
        lljax.check_policy(np.array([[0.2, 0.3, 0.5], row]))
