"""The built-in images: pinned bits, disjoint streams, and how hard they are."""

import hashlib
import itertools

import numpy as np
import pytest
import torch

from onelayer.core.errors import InputError
from onelayer.data.features import measure, standardise
from onelayer.data.read.shapes import CLASS_NAMES, TEST, make


def test_the_bits_never_change():
    images = make(300, 0, 1)
    digest = hashlib.sha256(images.x.numpy().tobytes() + images.labels.tobytes()).hexdigest()
    assert digest == DIGEST


DIGEST = "f03d8e5a89a5a5c8b3054a500136a8f3e20553f27b9f7381bcbe126026b647e6"


def test_fewer_are_the_beginning_of_more():
    few, many = make(10, 3, 2), make(700, 3, 2)
    assert torch.equal(few.x, many.x[:10])
    assert few.labels.tolist() == many.labels[:10].tolist()


def test_all_classes_are_about_as_frequent():
    counts = torch.from_numpy(np.bincount(make(5000, 0).labels, minlength=10))
    assert len(counts) == len(CLASS_NAMES) == 10
    assert (counts - 500).abs().max() < 110  # 5 standard deviations


def test_no_image_comes_twice():
    sets = [make(500, seed, stream) for seed in (0, 1) for stream in (TEST, 1, 2)]
    rows = {row.numpy().tobytes() for images in sets for row in images.x}
    assert len(rows) == 3000


def test_images_fill_the_range_of_a_byte():
    x = make(500, 0).x
    assert x.shape == (500, 3072)
    assert (x.min(), x.max()) == (0, 255)
    assert 90 < x.double().mean() < 165


@pytest.mark.parametrize("arguments", [(0, 0), (-1, 0), (1, -1), (1, 0, -1)])
def test_bad_values_are_refused(arguments):
    with pytest.raises(InputError):
        make(*arguments)


@pytest.fixture
def one_thread():
    """Small steps gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(X, y, hidden, steps=400):
    """REFERENCE.md's exercise 3, shorter: one cycle, batch 100, lambda 0.01; plain autograd."""
    generator = torch.Generator().manual_seed(0)
    sizes = [X.shape[1], *([hidden] if hidden else []), 10]
    parameters = []
    for d, k in itertools.pairwise(sizes):
        W = torch.randn(k, d, generator=generator) / d**0.5
        parameters += [W.requires_grad_(), torch.zeros(k, requires_grad=True)]
    order = torch.cat([torch.randperm(len(X), generator=generator) for _ in range(steps // 50)])
    for t, rows in enumerate(order.split(100)[:steps]):
        Z = logits(X[rows], parameters)
        cost = torch.nn.functional.cross_entropy(Z, y[rows])
        cost = cost + 0.01 * sum(W.square().sum() for W in parameters[::2])
        gradients = torch.autograd.grad(cost, parameters)
        lr = 1e-5 + 0.1 * min(t, steps - t) / (steps / 2)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= lr * gradient
    return parameters


def logits(X, parameters):
    for W, b in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        X = (X @ W.T + b).relu()
    return X @ parameters[-2].T + parameters[-1]


@pytest.mark.usefixtures("one_thread")
def test_the_linear_layer_is_far_from_perfect_and_the_hidden_layer_clearly_better():
    training, test = make(5000, 0, 1), make(3000, 0)
    statistics = measure(training.x)
    X, X_test = (standardise(images.x, statistics) for images in (training, test))
    accuracy = {}
    for hidden in (0, 50):
        predicted = logits(X_test, train(X, torch.from_numpy(training.labels), hidden)).argmax(1)
        accuracy[hidden] = float((predicted == torch.from_numpy(test.labels)).float().mean())
    assert 0.25 < accuracy[0] < 0.6
    assert accuracy[50] > accuracy[0] + 0.08
    assert accuracy[50] < 0.9
