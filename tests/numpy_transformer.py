"""An independent Transformer language model and its meta-gradient, written out in NumPy.

It shares nothing with the package: no JAX, no automatic differentiation. One sequence and one
attention head at a time, padding cut off instead of masked, the gradient of the loss by hand.

All of it is analytic in parameters and policy and keeps to that in complex arithmetic, so the
derivative of a whole training run is Im f(x + ih) / h with h = 1e-30: no difference is taken and
nothing cancels.
"""

import dataclasses

import numpy as np

PAD = 0
STEP = 1e-30


def root_mean_square(x):
    return np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-12)


def norm(x, gain, bias):
    return gain * x / root_mean_square(x) + bias


def norm_transpose(x, gain, dy):
    """Derivatives with respect to x, gain and bias, from that of the output."""
    root = root_mean_square(x)
    unit = x / root
    dunit = gain * dy
    dx = (dunit - unit * (dunit * unit).mean(axis=-1, keepdims=True)) / root
    return dx, (dy * unit).sum(axis=0), dy.sum(axis=0)


def softmax(scores, allowed):
    top = np.where(allowed, scores.real, -np.inf).max(axis=-1, keepdims=True)
    powers = np.exp(np.where(allowed, scores - top, -1e30))
    return powers / powers.sum(axis=-1, keepdims=True)


def relu(x):
    """Its value and its slope."""
    return x * (x.real > 0), x.real > 0


def gelu(x):
    """The same, by the tanh that is usual for it."""
    root, cubic = np.sqrt(2 / np.pi), 0.044715
    tanh = np.tanh(root * (x + cubic * x**3))
    return 0.5 * x * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * root * (
        1 + 3 * cubic * x**2
    )


ACTIVATIONS = {"relu": relu, "gelu": gelu}


@dataclasses.dataclass(frozen=True)
class NumpyTransformer:
    """Parameters are a flat dict, named as the package names them."""

    num_layers: int
    num_heads: int
    score_divisor: float
    activation: str = "relu"

    def loss(self, params, row):
        """The mean loss over the targets of one sequence, and what its gradient needs."""
        tokens = row[: np.flatnonzero(row != PAD)[-1] + 1]
        inputs, targets = tokens[:-1], tokens[1:]
        x = params["words"][inputs] + params["positions"][: len(inputs)]
        states = [x]
        for layer in range(self.num_layers):
            x = x + self._attention(params, layer, x)[0]
            states.append(x)
            x = x + self._feed_forward(params, layer, x)[0]
            states.append(x)
        last = norm(x, params["final_norm/gain"], params["final_norm/bias"])
        probabilities = softmax(last @ params["head"], np.bool_(True))
        picked = probabilities[np.arange(len(targets)), targets]
        return -np.log(picked).mean(), (inputs, targets, states, last, probabilities)

    def losses(self, params, tokens):
        """[N, L+1] -> [N]."""
        return np.array([self.loss(params, row)[0] for row in tokens])

    def gradient(self, params, tokens, weights):
        """The gradient of sum_n w_n l_n."""
        total = {name: np.zeros(leaf.shape, complex) for name, leaf in params.items()}
        for row, weight in zip(tokens, weights, strict=True):
            for name, leaf in self.sequence_gradient(params, row).items():
                total[name] += weight * leaf
        return total

    def sequence_gradient(self, params, row):
        """The gradient of l_n, back to front."""
        _, (inputs, targets, states, last, probabilities) = self.loss(params, row)
        count = len(targets)
        dlogits = probabilities.copy()
        dlogits[np.arange(count), targets] -= 1
        dlogits /= count
        grads = {"head": last.T @ dlogits}
        dx, grads["final_norm/gain"], grads["final_norm/bias"] = norm_transpose(
            states[-1], params["final_norm/gain"], dlogits @ params["head"].T
        )
        for layer in reversed(range(self.num_layers)):
            dx = dx + self._feed_forward_transpose(params, layer, states[2 * layer + 1], dx, grads)
            dx = dx + self._attention_transpose(params, layer, states[2 * layer], dx, grads)
        for name, rows in (("words", inputs), ("positions", np.arange(count))):
            grads[name] = np.zeros(params[name].shape, dx.dtype)
            np.add.at(grads[name], rows, dx)
        return grads

    def _attention(self, params, layer, x):
        y = norm(x, *self._norm_params(params, "attention", layer))
        projected = {
            name: y @ params[f"attentions_{layer}/{name}/kernel"]
            for name in ("query", "key", "value")
        }
        past = np.tril(np.ones((len(x), len(x)), bool))
        mixed = np.empty_like(projected["value"])
        weights = []
        for columns in self._heads(x):
            query, key, value = (p[:, columns] for p in projected.values())
            weights.append(softmax(query @ key.T / self.score_divisor, past))
            mixed[:, columns] = weights[-1] @ value
        output = mixed @ params[f"attentions_{layer}/output/kernel"]
        return output, (y, projected, weights, mixed)

    def _attention_transpose(self, params, layer, x, dout, grads):
        _, (y, projected, weights, mixed) = self._attention(params, layer, x)
        prefix = f"attentions_{layer}"
        grads[f"{prefix}/output/kernel"] = mixed.T @ dout
        dmixed = dout @ params[f"{prefix}/output/kernel"].T
        dprojected = {name: np.zeros_like(p) for name, p in projected.items()}
        for columns, w in zip(self._heads(x), weights, strict=True):
            query, key, value = (p[:, columns] for p in projected.values())
            dw = dmixed[:, columns] @ value.T
            dscores = w * (dw - (w * dw).sum(axis=-1, keepdims=True)) / self.score_divisor
            dprojected["query"][:, columns] = dscores @ key
            dprojected["key"][:, columns] = dscores.T @ query
            dprojected["value"][:, columns] = w.T @ dmixed[:, columns]
        dy = 0
        for name, dp in dprojected.items():
            grads[f"{prefix}/{name}/kernel"] = y.T @ dp
            dy = dy + dp @ params[f"{prefix}/{name}/kernel"].T
        return self._norm_transpose(params, "attention", layer, x, dy, grads)

    def _feed_forward(self, params, layer, x):
        y = norm(x, *self._norm_params(params, "feed_forward", layer))
        inside = y @ params[f"feed_forwards_{layer}/inner/kernel"]
        active = ACTIVATIONS[self.activation](inside)[0]
        return active @ params[f"feed_forwards_{layer}/outer/kernel"], (y, inside)

    def _feed_forward_transpose(self, params, layer, x, dout, grads):
        _, (y, inside) = self._feed_forward(params, layer, x)
        active, slope = ACTIVATIONS[self.activation](inside)
        prefix = f"feed_forwards_{layer}"
        grads[f"{prefix}/outer/kernel"] = active.T @ dout
        dinside = slope * (dout @ params[f"{prefix}/outer/kernel"].T)
        grads[f"{prefix}/inner/kernel"] = y.T @ dinside
        dy = dinside @ params[f"{prefix}/inner/kernel"].T
        return self._norm_transpose(params, "feed_forward", layer, x, dy, grads)

    def _norm_params(self, params, part, layer):
        return (params[f"{part}_norms_{layer}/{name}"] for name in ("gain", "bias"))

    def _norm_transpose(self, params, part, layer, x, dy, grads):
        prefix = f"{part}_norms_{layer}"
        dx, grads[f"{prefix}/gain"], grads[f"{prefix}/bias"] = norm_transpose(
            x, params[f"{prefix}/gain"], dy
        )
        return dx

    def _heads(self, x):
        width = x.shape[-1] // self.num_heads
        return [slice(head * width, (head + 1) * width) for head in range(self.num_heads)]


def train(model, params, policy, rate, tokens):
    """theta_1 .. theta_T by gradient descent."""
    path = []
    for row in policy:
        slope = model.gradient(params, tokens, row)
        params = {name: leaf - rate * slope[name] for name, leaf in params.items()}
        path.append(params)
    return path


def auc(model, params, policy, rate, tokens, desired):
    path = train(model, params, policy, rate, tokens)
    return sum(model.losses(params, desired).mean() for params in path) / len(path)


def meta_gradient(model, params, policy, rate, tokens, desired):
    """dAUC/dpolicy [T, N], one entry at a time."""
    gradient = np.empty(policy.shape)
    for index in np.ndindex(policy.shape):
        moved = policy.astype(complex)
        moved[index] += 1j * STEP
        gradient[index] = auc(model, params, moved, rate, tokens, desired).imag / STEP
    return gradient


def slope_along(model, params, direction, policy, rate, tokens, desired):
    """dAUC/dtheta_0 in a direction."""
    moved = {name: leaf + 1j * STEP * direction[name] for name, leaf in params.items()}
    return auc(model, moved, policy, rate, tokens, desired).imag / STEP


def single_step_gradient(model, params, policy, rate, tokens, desired):
    """dL(theta_1)/dgamma_n = -eta grad L(theta_1) . grad l_n(theta_0), for T = 1."""
    (after,) = train(model, params, policy, rate, tokens)
    mean = model.gradient(after, desired, np.full(len(desired), 1 / len(desired)))
    rows = (model.sequence_gradient(params, row) for row in tokens)
    products = [sum((row[name] * mean[name]).sum() for name in mean) for row in rows]
    return -rate * np.real([products])
