"""Synthetic workdirs of finished runs, written as the engine writes them: through the schema."""

import base64
import dataclasses
import json
import struct
import zlib
from typing import Any

import numpy as np

from lljax.artifacts import curves, files, schema
from lljax.artifacts.schema import POLICIES, SETS

T, P, H, M, G = 200, 5, 20, 64, 21
N, PERTURBED = 400, 0.25
LAW_STEPS = np.unique(np.geomspace(1, T, 30).astype(int)) - 1
OUTER_STEPS, BEST = 12, 8
L0, B, BETA, T0 = 0.05, 9.0, 0.6, 20  # the conventional scaling law
HOSTILE = "<script>alert(1)</script> \x00\x1b[31m \ud800 a\n\nb " + "word " * 200 + "THE END"
STORY = "Once upon a time there was a small dog who liked to look for bones in the garden. "


@dataclasses.dataclass
class Forged:
    """What a run leaves in its workdir, before it is written."""

    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    arrays: dict[str, np.ndarray]
    samples: dict[str, list[dict[str, Any]]] | None = None

    def write(self, folder):
        folder.mkdir(exist_ok=True)
        files.write_json(folder / schema.CONFIG_FILE, self.config)
        lines = "".join(map(files.metrics_line, self.metrics))
        files.write_atomically(folder / schema.METRICS_FILE, lines.encode())
        files.write_arrays(folder, self.arrays, T)
        if self.samples is not None:
            files.write_samples(folder, self.samples)
        files.write_summary(folder, self.summary)
        return folder


def forge_perceptron(test_gain=4.5, test_beta=0.61):
    """A plausible perceptron run; `test_gain` below 1 makes the policy worse on the test set."""
    gains = {"desired": 20.0, "validation": test_gain, "test": test_gain}
    arrays = {}
    for name, gain in gains.items():
        arrays[f"conventional_{name}_losses"] = _curve(1.0)
        arrays[f"optimized_{name}_losses"] = _curve(gain, BETA if name == "desired" else test_beta)
    rng, path = np.random.default_rng(0), np.linspace(0, 1, P)
    noise = 0.01 * rng.standard_normal((P, T))
    arrays |= {
        "path_outer_step": np.linspace(0, BEST, P).round(),
        "path_compression_ratio": 2 + path,
        "path_similarity": 0.05 + 0.3 * path,
        "path_similarity_curve": 0.05 + 0.3 * path[:, None] + noise,
        "path_desired_losses": np.stack([_curve(1 + 19 * p) for p in path]),
        "path_zero_weight_share": 0.8 * path,
        "path_zero_weight_curve": np.clip(0.8 * path[:, None] * np.ones(T) + noise, 0, 1),
        "learned_edges": np.linspace(0, 1, G),
        "path_learned_counts": rng.integers(1, 50, (P, G - 1)),
        "heatmap_steps": np.linspace(0, T - 1, H).round(),
        "heatmap_weights": rng.exponential(2, (H, M)) * (rng.random((H, M)) > 0.5),
    }
    arrays = {key: np.asarray(value, np.float32) for key, value in arrays.items()}
    summary = _summary(arrays)
    summary["scaling_law"] = {
        "conventional": {"L0": L0, "B": B, "beta": BETA, "t0": T0, "r2": 0.998},
        "optimized": {"L0": L0, "B": B / test_gain, "beta": test_beta, "t0": T0, "r2": 0.999},
    }
    return Forged(_config(), list(map(_metrics, range(OUTER_STEPS + 1))), summary, arrays)


def forge_language_model():
    """The same as a run of a language model on texts of which some are perturbed."""
    forged = forge_perceptron()
    rng, arrays = np.random.default_rng(1), forged.arrays
    count = int(PERTURBED * N)
    totals = np.exp(rng.normal(0, 0.6, N))
    totals[:count] = np.exp(rng.normal(-4, 3, count))
    totals *= N / totals.sum()
    perturbed = np.arange(N) < count
    share = PERTURBED * (1 - np.linspace(0, 0.9, P)[:, None] * np.linspace(1, 0.8, T))
    for key in arrays:
        if key.endswith("_losses"):
            arrays[key] = (2.3 + 9.4 * (arrays[key] - L0)).astype(np.float32)
    for fit in forged.summary["scaling_law"].values():
        fit |= {"L0": 2.3, "B": fit["B"] * 9.4 ** (1 / fit["beta"])}
    forged.summary |= _sets(arrays)
    for key in ("path_similarity_curve", "path_zero_weight_curve"):
        arrays[key] = arrays[key][:, LAW_STEPS]
    arrays["path_learned_counts"] *= 0
    arrays |= {
        "law_steps": LAW_STEPS,
        "perturbed": perturbed.astype(np.uint8),
        "perturbed_share": share.astype(np.float32),
        "total_weights": totals.astype(np.float32),
    }
    shares = {"conventional": float(share[0].mean()), "optimized": float(share[-1].mean())}
    forged.summary |= {
        "task": "language_model",
        "num_train": N,
        "facts": ["vocabulary of 5000"],
        "vocab_size": 5000,
        "perturbed": {"examples": PERTURBED, "weight_share": shares},
    }
    forged.config |= {"task": "language_model", "data": {"num_train": N, "vocab_size": 5000}}
    order = np.argsort(totals)
    forged.samples = {
        name: [
            {
                "example": int(n),
                "weight": float(totals[n]),
                "perturbed": bool(perturbed[n]),
                # JSON can hold a lone surrogate, and so can a text that a run was given.
                "text": HOSTILE if i == 0 else STORY * (i % 3 + 1),
            }
            for i, n in enumerate(chosen)
        ]
        for name, chosen in (("largest", order[:-6:-1]), ("smallest", order[:5]))
    }
    return forged


def change_summary(folder, change):
    """Rewrites summary.json as `change` leaves it; the schema must allow that."""
    summary = json.loads((folder / schema.SUMMARY_FILE).read_text())
    change(summary)
    files.write_summary(folder, summary)
    return summary


def change_arrays(folder, change):
    """The same for analysis.npz."""
    with np.load(folder / schema.ARRAYS_FILE) as archive:
        arrays = dict(archive)
    change(arrays)
    files.write_arrays(folder, arrays, T)


def png(rows):
    """A grey picture of 8-bit values [height, width] as a PNG file in base64."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    pixels = np.asarray(rows, np.uint8)
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()


def _curve(gain, beta=BETA):
    """On the scaling law with B / gain after T0, on a line that leads there before."""
    t = np.arange(T + 1)
    losses = L0 + (B / gain / np.maximum(t, 1)) ** beta
    start = max(0.65, 1.5 * losses[T0 + 1])
    losses[: T0 + 1] = np.interp(t[: T0 + 1], (0, T0 + 1), (start, losses[T0 + 1]))
    return losses.astype(np.float32)


def _config():
    return {
        "task": "perceptron",
        "seed": 0,
        "inner": {"num_steps": T, "learning_rate": 0.1},
        "outer": {"num_steps": OUTER_STEPS, "method": "exponentiated_gradient"},
        "data": {"label_noise": 0.3, "path": None},
    }


def _metrics(step):
    auc = 0.1 + 0.2 * 0.8**step
    return {
        "outer_step": step,
        "objective": auc,
        "desired_auc": auc,
        "compression_ratio": float(np.log(2) / auc),
        "validation_auc": 0.2 + 0.001 * (step - BEST) ** 2,
        "desired_acceleration_ratio": 2.0,
        "validation_acceleration_ratio": None,
        "optimality_gap": 0.01,
        "step_size": 1.0,
        "accepted": True,
        "trial_objective": auc,
        "best": step <= BEST,
        "seconds": 0.5,
    }


def _summary(arrays):
    law = {
        policy: {
            "similarity": similarity,
            "optimality_gap": gap,
            "zero_weight_share_of_noncontributive": share,
        }
        for policy, similarity, gap, share in (
            ("conventional", 0.05, 0.01, 0.0),
            ("optimized", 0.35, 1e-4, 0.8),
        )
    }
    return {
        "task": "perceptron",
        "seed": 0,
        "device": "cpu <2 cores>",
        "versions": {"jax": "0.10.2", "lljax": "0.1.0"},
        "inner_steps": T,
        "outer_steps": OUTER_STEPS,
        "best_outer_step": BEST,
        "seconds": {"compile": 3.0, "optimize": 41.0, "evaluate": 2.0, "total": 46.0},
        "learning_law": law,
        **_sets(arrays),
    }


def _sets(arrays):
    return {name: _scores(*(arrays[f"{p}_{name}_losses"] for p in POLICIES)) for name in SETS}


def _scores(conventional, optimized):
    reached = np.flatnonzero(optimized[1:] <= conventional[-1])
    ratio = float(T / (reached[0] + 1)) if reached.size else None
    own_end = curves.own_end(conventional)
    scores = {"acceleration_ratio": ratio, "conventional_reaches_at": own_end}
    for policy, losses in (("conventional", conventional), ("optimized", optimized)):
        auc = float(losses[1:].mean())
        scores[policy] = {
            "auc": auc,
            "final_loss": float(losses[-1]),
            "compression_ratio": float(np.log(2) / auc),
            **curves.best(losses),
        }
    return scores
