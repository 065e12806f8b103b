"""Policies that are optimised over many training runs, and what they are good for.

The weights of such a policy belong to examples, groups or looks, not to the steps of one run: so
they can be exported, applied to unseen data, and used to train another model.

    families      what is optimised, and the weights that it makes
    drawn         training runs that keys draw, and their meta-gradient in segments
    loop          the outer steps, resumable inside any of them
    run           one such experiment, from config to artifacts
"""
