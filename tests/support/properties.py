"""Properties that every formula, update and solver has, as judges of a function.

A judged function takes features X (n, d), labels y (n,), the parameters (m, …) of a population and
weights of the samples (n,) or None. It returns tensors whose first axis is m.
"""

import torch

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def assert_members_are_independent(function, X, y, parameters, weight=None):
    """A member that has diverged changes nothing for the others."""
    expected = function(X, y, [p[1:].clone() for p in parameters], weight)
    spoilt = [torch.cat([torch.full_like(p[:1], torch.nan), p[1:]]) for p in parameters]
    for ours, wanted in zip(function(X, y, spoilt, weight), expected, strict=True):
        torch.testing.assert_close(ours[1:], wanted, **CLOSE)


def assert_one_member_is_a_single_run(function, X, y, parameters, weight=None):
    """A population ends as its members would alone."""
    together = function(X, y, [p.clone() for p in parameters], weight)
    for i in range(len(parameters[0])):
        alone = function(X, y, [p[i : i + 1].clone() for p in parameters], weight)
        for ours, wanted in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[i : i + 1], wanted, **CLOSE)


def assert_order_of_samples_is_irrelevant(function, X, y, parameters, weight=None):
    """The order of the samples in a batch changes nothing."""
    order = torch.arange(len(y)).flip(0)
    moved = None if weight is None else weight[order]
    expected = function(X, y, [p.clone() for p in parameters], weight)
    for ours, wanted in zip(
        function(X[order], y[order], [p.clone() for p in parameters], moved), expected, strict=True
    ):
        torch.testing.assert_close(ours, wanted, **CLOSE)


def assert_a_constant_added_to_the_logits_changes_nothing(function, X, y, parameters, weight=None):
    """A number added to every bias of the last layer leaves all results but that bias the same."""
    shifted = [p.clone() for p in parameters]
    shifted[-1] += 17.0
    expected = function(X, y, [p.clone() for p in parameters], weight)
    for ours, wanted in zip(function(X, y, shifted, weight), expected, strict=True):
        torch.testing.assert_close(ours - ours.mean(-1, True), wanted - wanted.mean(-1, True),
                                   rtol=1e-8, atol=1e-10)  # fmt: skip


def assert_a_weight_of_two_is_a_repeated_sample(function, X, y, parameters):
    """Whole numbers as weights stand for repeated samples."""
    weight = torch.arange(len(y), dtype=X.dtype) % 3
    rows = torch.arange(len(y)).repeat_interleave(weight.long())
    expected = function(X[rows], y[rows], [p.clone() for p in parameters], None)
    for ours, wanted in zip(
        function(X, y, [p.clone() for p in parameters], weight), expected, strict=True
    ):
        torch.testing.assert_close(ours, wanted, **CLOSE)


JUDGES = (
    assert_members_are_independent,
    assert_one_member_is_a_single_run,
    assert_order_of_samples_is_irrelevant,
    assert_a_constant_added_to_the_logits_changes_nothing,
    assert_a_weight_of_two_is_a_repeated_sample,
)
