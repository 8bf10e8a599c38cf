"""to_torch: a plain module that predicts as the networks do."""

import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from tests.deploy.nets import MODELS, made, predicted, raw_images


@pytest.fixture(params=MODELS)
def network(request):
    return made(**MODELS[request.param])


@torch.no_grad()
def difference(module, network, x, member="best"):
    return np.abs(module(torch.from_numpy(x)).numpy() - predicted(network, x, member)).max()


@pytest.mark.parametrize("member", ["best", "all", 0])
def test_it_predicts_as_predict_does(network, member):
    x = raw_images(9)
    module = network.to_torch(member)
    assert difference(module, network, x, member) < 1e-6
    assert difference(module, network, x.reshape(9, -1), member) < 1e-6
    floats = torch.from_numpy(x).float() / 255
    with torch.no_grad():
        assert (module(floats) - module(torch.from_numpy(x))).abs().max() < 1e-6


def test_it_is_made_of_linear_layers_and_relu(network):
    kinds = [type(layer) for layer in network.to_torch(0).networks[0]]
    assert kinds == ([nn.Linear, nn.ReLU, nn.Linear] if network.hidden else [nn.Linear])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_it_is_pickled_traced_exported_and_compiled(network):
    x = raw_images(6)
    module, example = network.to_torch(), torch.from_numpy(raw_images(3))
    kept = io.BytesIO()
    torch.save(module, kept)
    kept.seek(0)
    batch = torch.export.Dim("n", min=2)
    copies = [
        pickle.loads(pickle.dumps(module)),
        torch.load(kept, weights_only=False),
        torch.jit.trace(module, example),
        torch.export.export(module, (example,), dynamic_shapes=({0: batch},)).module(),
        torch.compile(module, backend="eager"),
    ]
    for copy in copies:
        assert difference(copy, network, x) < 1e-6
    other = network.to_torch()
    with torch.no_grad():
        other.networks[0][0].weight.zero_()
    other.load_state_dict(module.state_dict())
    assert difference(other, network, x) < 1e-6


def test_rows_of_length_1():
    network = made("numbers", (6,), standardise="unit", hidden=2)
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    x[3] = 0
    assert difference(network.to_torch(), network, x) < 1e-6


def test_training_it_leaves_the_networks_alone():
    network = made(hidden=3)
    before = network.numpy()
    module = network.to_torch()
    module(torch.from_numpy(raw_images(4)))[:, 0].sum().backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    assert all(np.array_equal(value, before[name]) for name, value in network.numpy().items())
