"""An independent meta-gradient of a linear logistic model, written out by hand in NumPy.

It shares nothing with the package: no JAX, no automatic differentiation, per-example gradients and
Hessians in closed form, every optimiser update and its transpose spelt out.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def losses(theta, z, y):
    logits = z @ theta
    return np.logaddexp(0, logits) - y * logits


def gradients(theta, z, y):
    return (sigmoid(z @ theta) - y)[:, None] * z


def hessian(theta, z, weights):
    p = sigmoid(z @ theta)
    return (z * (weights * p * (1 - p))[:, None]).T @ z


class GradientDescent:
    """With heavy-ball momentum; 0 for none."""

    def __init__(self, rate, momentum=0.0):
        self.rate, self.momentum = rate, momentum

    def init(self, theta):
        return np.zeros((1, theta.size))

    def step(self, theta, state, g):
        trace = g + self.momentum * state[0]
        return theta - self.rate * trace, trace[None]

    def transpose(self, theta, state, g, lam, mu):
        """(lambda, mu) after the step -> (a, mu) before it, and u for the gradient."""
        trace_bar = mu[0] - self.rate * lam
        return lam, (self.momentum * trace_bar)[None], trace_bar


class ClippedGradientDescent(GradientDescent):
    """The gradient is scaled down to norm c where it is longer."""

    def __init__(self, rate, clip):
        super().__init__(rate)
        self.clip = clip

    def step(self, theta, state, g):
        norm = np.sqrt(g @ g)
        return super().step(theta, state, g * min(1, self.clip / norm))

    def transpose(self, theta, state, g, lam, mu):
        a, mu, u = super().transpose(theta, state, g, lam, mu)
        norm = np.sqrt(g @ g)
        if norm > self.clip:
            u = self.clip / norm * (u - g * (g @ u) / norm**2)
        return a, mu, u


class AdamW:
    """State: first moment, second moment, step count."""

    def __init__(self, rate, b1, b2, eps, eps_root, decay):
        self.rate, self.b1, self.b2 = rate, b1, b2
        self.eps, self.eps_root, self.decay = eps, eps_root, decay

    def init(self, theta):
        return np.zeros((3, theta.size))

    def _moments(self, state, g):
        count = state[2] + 1
        m = self.b1 * state[0] + (1 - self.b1) * g
        v = self.b2 * state[1] + (1 - self.b2) * g**2
        return m, v, count, 1 - self.b1**count, 1 - self.b2**count

    def step(self, theta, state, g):
        m, v, count, c1, c2 = self._moments(state, g)
        direction = (m / c1) / (np.sqrt(v / c2 + self.eps_root) + self.eps)
        return theta - self.rate * (direction + self.decay * theta), np.stack([m, v, count])

    def transpose(self, theta, state, g, lam, mu):
        m, v, _, c1, c2 = self._moments(state, g)
        root = np.sqrt(v / c2 + self.eps_root)
        direction_bar = -self.rate * lam
        m_bar = mu[0] + direction_bar / c1 / (root + self.eps)
        v_bar = mu[1] - direction_bar * (m / c1) / (root + self.eps) ** 2 / (2 * root) / c2
        u = (1 - self.b1) * m_bar + 2 * (1 - self.b2) * g * v_bar
        a = lam * (1 - self.rate * self.decay)
        return a, np.stack([self.b1 * m_bar, self.b2 * v_bar, 0 * mu[2]]), u


def auc_and_gradients(optimizer, policy, theta, train, desired):
    """(AUC, dAUC/dpolicy [T, N], dAUC/dtheta_0 [D]) of train = (z, y), desired = (z, y)."""
    num_steps = len(policy)
    state, path, auc = optimizer.init(theta), [], 0.0
    for row in policy:
        g = row @ gradients(theta, *train)
        path.append((theta, state, g))
        theta, state = optimizer.step(theta, state, g)
        auc += losses(theta, *desired).mean() / num_steps
    lam = gradients(theta, *desired).mean(axis=0) / num_steps
    mu = np.zeros_like(state)
    policy_bar = np.zeros_like(policy)
    for t in reversed(range(num_steps)):
        theta, state, g = path[t]
        a, mu, u = optimizer.transpose(theta, state, g, lam, mu)
        policy_bar[t] = gradients(theta, *train) @ u
        lam = a + hessian(theta, train[0], policy[t]) @ u
        if t > 0:
            lam = lam + gradients(theta, *desired).mean(axis=0) / num_steps
    return auc, policy_bar, lam
