"""Hours and bytes of a meta-gradient of GPT-2 on up to 64 GPUs, on paper: writes SCALE.md.

    python -m benchmarks.scale

Bytes and the memory strategy are those of `lljax plan`: the same code, given shapes. The bytes that
devices exchange are counted in a compiled program of a small Transformer, in units of its
parameters, which do not depend on its size. Speeds are a data sheet's, times a share that is
assumed, and named.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks import machine
from benchmarks.devices import AXIS, LAYOUTS, counts
from lljax.engine.memory_plan import GIGABYTE, MemoryPlan, plan_memory
from lljax.engine.placement import Placement
from lljax.engine.units import count, duration, size
from lljax.errors import UserError
from lljax.tasks.config import InnerConfig

TARGET = Path(__file__).with_name("SCALE.md")
STEPS, BATCH, CONTEXT, DESIRED = 10_000, 512, 1024, 64  # T, B, s, K' desired sequences a step
PEAK, SHARE = 495e12, 0.4  # FLOP/s of an H100 in TF32, by its data sheet; assumed to be reached
DEVICE_BYTES = 80e9
LINK = {8: 450e9, 64: 50e9}  # bytes/s of a GPU: NVLink in a node; 400 Gbit/s between nodes
HOST_BYTES = 2e12  # of a node of eight
DISK = 2e9  # bytes/s, assumed
FORWARD, BACKWARD, AGAIN = 3, 8, 3  # forward passes of an example: README, "what it costs"


class Model(NamedTuple):
    """GPT-2: tied embeddings, learned positions."""

    layers: int
    width: int
    vocabulary: int = 50_257

    @property
    def num_params(self) -> int:
        """V d + s d + L (12 d^2 + 13 d) + 2 d."""
        d = self.width
        return (self.vocabulary + CONTEXT) * d + self.layers * (12 * d * d + 13 * d) + 2 * d

    @property
    def forward_flops(self) -> float:
        """Of a token: 24 L d^2 of the layers, 4 L s d of attention, 2 V d of the logits."""
        d, n = self.width, self.layers
        return 24 * n * d * d + 4 * n * CONTEXT * d + 2 * self.vocabulary * d

    @property
    def activation_bytes(self) -> float:
        """Of a sequence, with its tangents: 2 * 4 bytes * L s (17 d + 2.5 heads s), heads of 64."""
        heads = self.width / 64
        return 8 * self.layers * CONTEXT * (17 * self.width + 2.5 * heads * CONTEXT)


MODELS = {"GPT-2 124M": Model(12, 768), "GPT-2 1.5B": Model(48, 1600)}


class _Shapes(NamedTuple):
    """What `plan_memory` looks at of a problem."""

    params: jax.ShapeDtypeStruct
    optimizer: optax.GradientTransformation


class OnPaper(Placement):
    """Devices that need not be there, eight a host."""

    @property
    def num_local(self) -> int:
        return min(self.num_devices, 8)


def placement(number: int, splits_params: bool) -> Placement:
    """Of so many devices."""
    types = (jax.sharding.AxisType.Auto,)
    mesh: Any = jax.sharding.AbstractMesh((number,), (AXIS,), types)
    return OnPaper(mesh, splits_params)


def plan(model: Model, number: int, splits_params: bool) -> MemoryPlan | None:
    """As `lljax plan`; None where no strategy fits."""
    # The parameters as one matrix, which 64 devices divide.
    rows = -(-model.num_params // 4096) // 64 * 64 + 64
    params = jax.ShapeDtypeStruct((rows, 4096), np.float32)
    shapes: Any = _Shapes(params, optax.adamw(1e-4, eps_root=1e-6))
    free = DEVICE_BYTES - fixed_bytes(model, number, splits_params)
    if free <= 0:
        return None
    inner = InnerConfig(num_steps=STEPS, memory_budget_gb=free / GIGABYTE, starts="host")
    try:
        found = plan_memory(shapes, inner, placement=placement(number, splits_params))
    except UserError:
        return None
    # As `--inner.starts auto` decides on a host of that size.
    return dataclasses.replace(found, starts_on_disk=2 * found.starts_bytes > HOST_BYTES // 2)


def fixed_bytes(model: Model, number: int, splits_params: bool) -> float:
    """On a device, beside kept states: theta_0, a state and its cotangent, a gradient with its
    tangent, and the activations of one sequence."""
    parts = number if splits_params else 1
    return (1 + 3 + 3 + 2) * 4 * model.num_params / parts + model.activation_bytes


def exchanged(number: int = 8) -> float:
    """What a device hands over in an inner step, in parameters of the model."""
    make, batch, split = LAYOUTS["transformer, micro-batches"]
    problem = make()
    found = counts(problem, batch, split, number, AXIS)
    leaves = jax.tree.leaves(problem.params)
    return found["bytes"] / sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def row(model: Model, number: int, splits_params: bool, exchange: float) -> str:
    """A line of the table."""
    name = f"{number}, {'split' if splits_params else 'whole'}"
    found = plan(model, number, splits_params)
    fixed = fixed_bytes(model, number, splits_params)
    if found is None:
        needed = f"needs {size(fixed)} beside kept states"
        return f"| {name} | {needed} | | | | | | breaks: a GPU has {size(DEVICE_BYTES)} |"
    levels = len(found.within_segment.split(found.segment_length))
    again = AGAIN * (levels - found.resident)
    passes = FORWARD + BACKWARD + again + (5 * DESIRED) / BATCH
    flops = STEPS * BATCH * CONTEXT * passes * model.forward_flops
    compute = flops / (number * PEAK * SHARE)
    link = LINK[8] if number <= 8 else LINK[64]
    sweeps = (FORWARD + BACKWARD + again) / (FORWARD + BACKWARD)
    told = STEPS * sweeps * exchange * 4 * model.num_params
    told *= 3 if splits_params else 1  # gathered for each pass, and scattered
    network = 0.0 if number == 1 else 2 * told * (number - 1) / number / link
    host = found.host_bytes(found.mode)
    tight = "" if host <= HOST_BYTES else f"breaks: a host has {size(HOST_BYTES)}"
    kept = found.device_bytes(found.mode)
    disk = size(found.starts_bytes) if found.starts_on_disk else "-"
    return (
        f"| {name} | {found.mode}, {len(found.segments)} segments | {size(fixed + kept)} "
        f"| {size(host)} | {disk} | {passes:.1f} | {count(flops, 'FLOP')} "
        f"| {duration(compute)} + {duration(network)} {tight}|"
    )


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    exchange = exchanged()
    tokens = BATCH * CONTEXT
    lines = [
        "# GPT-2 on up to 64 GPUs, on paper",
        "",
        "`python -m benchmarks.scale` writes this file; `lljax plan` prints the same figures of a "
        "config on its machine, by the same code. No GPU was used.",
        "",
        f"One meta-gradient: T = {STEPS:,} inner steps of AdamW on batches of {BATCH} x "
        f"{CONTEXT:,} = {tokens:,} tokens, {DESIRED} desired sequences a step, float32, weights of "
        f"examples [T, B]. GPUs of {size(DEVICE_BYTES)}, eight a node.",
        "",
        "| figure | formula |",
        "|---|---|",
        "| state | 12 P bytes: theta and AdamW's two moments, float32; the record of a step "
        "16 P, with the gradient |",
        "| fixed, a GPU | 36 P / (1, or D where parameters are split) + activations of a sequence, "
        "8 L s (17 d + 2.5 s d / 64) |",
        "| kept | by `lljax.engine.memory_plan`, into what a GPU has left |",
        "| host, a process | (C + 1) whole states of 12 P, for the first steps of C segments; one "
        "process a node |",
        f"| disk | these states, where they are more than a quarter of the {size(HOST_BYTES)} of a "
        "host (`--inner.starts auto`): written once each, by process 0; a process then has two |",
        f"| passes | {FORWARD} forward + {BACKWARD} backward + {AGAIN} for each time that states "
        f"are made again + 5 K'/B for the desired losses |",
        "| FLOP | T B s passes (24 L d^2 + 4 L s d + 2 V d) |",
        f"| hours | FLOP / (D x {PEAK / 1e12:.0f} TFLOP/s x {SHARE}) + 2 (D - 1)/D x bytes / "
        f"link |",
        f"| bytes, a step | {exchange:.2f} x 4 P, counted in the compiled program of a small "
        f"Transformer ({machine.in_words(machine.describe_machine()).split(';')[0]}), three times "
        f"that with split parameters |",
        f"| link | {LINK[8] / 1e9:.0f} GB/s within a node, {LINK[64] / 1e9:.0f} GB/s between |",
        "",
        f"The speed is TF32's by the data sheet, and {SHARE:.0%} of it assumed. Computing and "
        f"telling are added, as if nothing overlapped. Starts on the disk are written and read "
        f"once each; that time is not in the table: at {DISK / 1e9:.0f} GB/s "
        f"{duration(2 * 100 * 12 * MODELS['GPT-2 1.5B'].num_params / DISK)} for the larger model.",
    ]
    for name, model in MODELS.items():
        lines += [
            "",
            f"## {name}: {model.num_params / 1e6:,.0f} million parameters",
            "",
            "| D, parameters | strategy | a GPU | a process | disk | passes | a meta-gradient "
            "| time: computing + telling |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for number in (1, 8, 16, 32, 64):
            lines += [row(model, number, split, exchange) for split in (False, True)[:number]]
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
