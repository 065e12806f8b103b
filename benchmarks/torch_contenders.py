"""The ways to one meta-gradient that a user of PyTorch could pick."""

from collections.abc import Callable

import numpy as np

from benchmarks.checkouts import Sources, how_to_get, missing_packages
from benchmarks.contender import Contender, MissingError
from benchmarks.problems import LEARNING_RATE, Problem
from benchmarks.public_code import BatchSizes, PublicCode, import_torch


def plain(problem: Problem, sources: Sources) -> Contender:
    """Gradient descent written out, differentiated by autograd through everything it did."""

    def start(module):
        import torch

        def begin():
            params = {n: leaf.detach().requires_grad_() for n, leaf in module.named_parameters()}

            def step(loss_of):
                nonlocal params
                leaves = tuple(params.values())
                gradient = torch.autograd.grad(loss_of(params), leaves, create_graph=True)
                updated = (p - LEARNING_RATE * g for p, g in zip(leaves, gradient, strict=True))
                params = dict(zip(params, updated, strict=True))
                return params

            return step

        return begin

    return _unrolled(problem, sources, start)


def torchopt(problem: Problem, sources: Sources) -> Contender:
    """TorchOpt's differentiable SGD."""
    require_packages("torchopt")

    def start(module):
        import torchopt

        initial = torchopt.extract_state_dict(module, by="deepcopy")

        def begin():
            torchopt.recover_state_dict(module, initial)
            optimizer = torchopt.MetaSGD(module, lr=LEARNING_RATE)

            def step(loss_of):
                optimizer.step(loss_of(dict(module.named_parameters())))
                return dict(module.named_parameters())

            return step

        return begin

    return _unrolled(problem, sources, start)


def public_code(script_batches: bool) -> Callable[[Problem, Sources], Contender]:
    """The public code: with the batch sizes of its scripts, or with all examples in one batch."""

    def build(problem, sources):
        code, model, train, desired = _their_problem(problem, sources)

        limits = (512, 512, 64) if script_batches else (problem.num_train,) * 3
        counts = (problem.num_train, problem.num_train, problem.num_desired)
        sizes = BatchSizes(*(min(pair) for pair in zip(limits, counts, strict=True)))
        policy = np.asarray(problem.policy)
        return Contender(
            lambda: code.meta_gradient(model, policy, train, desired, LEARNING_RATE, sizes)[1]
        )

    return build


def require_packages(*names: str) -> None:
    """MissingError for those that are not installed."""
    if packages := missing_packages(*names):
        raise MissingError(how_to_get(packages=packages))


def _unrolled(problem: Problem, sources: Sources, start: Callable) -> Contender:
    """`start(module)` gives `begin()`, which gives `step(params -> loss) -> new params`."""
    require_packages("torch")
    import torch

    losses_of, module, train, desired, device = torch_problem(problem, sources)
    policy = torch.tensor(np.asarray(problem.policy), device=device, requires_grad=True)
    begin = start(module)

    def gradient():
        area = 0.0
        step = begin()
        for row in policy:
            params = step(lambda p, row=row: (row * losses_of(p, train)).sum())
            area = area + losses_of(params, desired).mean()
        return torch.autograd.grad(area / len(policy), policy)[0].cpu()

    return Contender(gradient)


def torch_problem(problem: Problem, sources: Sources):
    """((params, batch) -> losses [B], module with theta_0, train, desired, device)."""
    torch = import_torch()
    from torch.nn import functional

    if problem.name.endswith("perceptron"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        module = torch.nn.Linear(problem.params.size, 1, bias=False, device=device)
        torch.nn.init.zeros_(module.weight)
        train, desired = (
            [torch.tensor(np.asarray(leaf), device=device) for leaf in batch]
            for batch in (problem.train, problem.desired)
        )

        def logistic_losses(params, batch):
            scores = torch.func.functional_call(module, params, (batch[0],))[:, 0]
            return functional.binary_cross_entropy_with_logits(scores, batch[1], reduction="none")

        return logistic_losses, module, train, desired, device

    code, module, train, desired = _their_problem(problem, sources)

    def losses_of(params, batch):
        inputs, labels = batch
        logits = torch.func.functional_call(module, params, (inputs,)).logits
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view(labels.shape).mean(1)  # random tokens, no padding among them

    return losses_of, module, train, desired, code.device


def _their_problem(problem: Problem, sources: Sources):
    """(the public code, its model with theta_0, train, desired)."""
    packages = missing_packages("torch")
    if packages or "public_code" not in sources:
        raise MissingError(how_to_get("public_code", packages=packages))
    code = PublicCode(sources["public_code"])
    if problem.name.endswith("perceptron"):
        model = code.perceptron(np.asarray(problem.params))
        return code, model, code.labelled(problem.train), code.labelled(problem.desired)
    assert problem.model is not None
    model = code.transformer(
        problem.params, num_layers=problem.model.num_layers, num_heads=problem.model.num_heads
    )
    vocab_size = problem.params["head"].shape[1]
    train, desired = (code.sequences(b, vocab_size) for b in (problem.train, problem.desired))
    return code, model, train, desired
