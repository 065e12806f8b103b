"""What only a policy over many runs leaves: a part of summary.json, and transfer.json."""

from typing import Any

from lljax.artifacts.fields import (
    COUNT,
    NUMBER,
    NUMBERS_LIST,
    OBJECT,
    TEXT,
    TEXTS,
    TRUTH,
    Field,
    check_fields,
    fields_below,
    optional,
)

OVER_RUNS = (
    optional("data_digest", TEXT, "SHA-256 of the four sets, without theta_0"),
    optional("family", TEXT, "the family of the policy; absent: dense"),
    optional("groups", OBJECT, "only if the training examples have groups"),
    Field("groups.names", TEXTS, "their names"),
    *(
        Field(f"groups.weight_share.{policy}", NUMBERS_LIST, "of each")
        for policy in ("conventional", "optimized")
    ),
    optional("runs", OBJECT, "of a family that is not dense: what single runs show"),
    Field("runs.acceleration_ratios", NUMBERS_LIST, "on the test set, of each fresh run"),
    optional("runs.oracle_acceleration_ratios", NUMBERS_LIST, "of weights that know the truth"),
    optional("runs.flops", NUMBER, "of all meta-gradients"),
    optional("runs.effective_sample_size", NUMBER, "1 / sum of squared weights"),
    optional("runs.scorer_correlation", NUMBER, "of a scorer, with the weights it is fitted to"),
)
"""Fields of summary.json."""

TRANSFER = (
    Field("arms", OBJECT, "by what models were trained on: uniform, curated, random, oracle"),
    *(
        field
        for arm in ("uniform", "curated", "random")
        for field in fields_below(
            f"arms.{arm}",
            (
                Field("acceleration_ratio", NUMBER, "AR on the test set, of the mean curve"),
                Field("acceleration_ratios", NUMBERS_LIST, "of single runs"),
                Field("final_losses", NUMBERS_LIST, "test losses of single runs, nats"),
                Field("curve", NUMBERS_LIST, "mean test loss at `steps`, nats"),
            ),
        )
    ),
    Field("steps", NUMBERS_LIST, "inner steps that were measured"),
    Field("inner_steps", COUNT, "T"),
    Field("num_params", COUNT, "of the model"),
    Field("unseen_data", TRUTH, "whether the data are others than the run's"),
    Field("flops.finding", NUMBER, "of the policy"),
    Field("flops.training", NUMBER, "of one conventional run"),
    Field("flops.saved", NUMBER, "of one run, by the curated data"),
    Field("flops.break_even_runs", NUMBER, "so many runs, and finding the policy pays"),
)


def check_transfer(transfer: Any) -> None:
    """Checks transfer.json; raises SchemaError."""
    check_fields(transfer, TRANSFER)
