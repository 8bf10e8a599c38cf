"""A network as one ONNX file, written node by node.

Operators are those of opset 17: https://onnx.ai/onnx/operators/. Products and sums are float64, as
in predict: float32 is off by a few 1e-6. Weights lie in the file in their own type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onelayer.deploy.head import Head, needed

OPSET, IR = 17, 8  # read by every onnxruntime since 1.13


def onnx_bytes(head: Head, metadata: Mapping[str, str]) -> bytes:
    """Return the file's content, checked by ``onnx.checker``.

    The input ``samples`` is (n, …), raw. The outputs are ``probabilities`` (n, k) and ``label``
    (n,), the index of the largest.

    Raises:
        InputError: the package onnx is missing, or the graph is not valid.
    """
    onnx = needed("onnx", ".onnx", "onnx")
    helper = needed("onnx.helper", ".onnx", "onnx")
    graph = _Graph(onnx)
    x = graph.standardised(head)
    p = graph.probabilities(head, x)
    graph.add("ArgMax", [p], "label", axis=1, keepdims=0)
    probability = _type(head.weights[0].dtype)
    made = helper.make_graph(
        graph.nodes,
        "onelayer",
        [helper.make_tensor_value_info("samples", _type(head.dtype), ["n", *head.shape])],
        [
            helper.make_tensor_value_info("probabilities", probability, ["n", head.outputs]),
            helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["n"]),
        ],
        graph.constants,
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(made, opset_imports=[opset], ir_version=IR, producer_name="onelayer")
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


class _Graph:
    """Nodes and constants; each method returns the name of its result."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes, self.constants = list[Any](), list[Any]()

    def add(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        node = self.onnx.helper.make_node(operator, inputs, [name], name=name, **attributes)
        self.nodes.append(node)
        return name

    def constant(self, name: str, value: Tensor) -> str:
        array = np.ascontiguousarray(value.numpy())
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def wide(self, name: str, value: Tensor) -> str:
        """Add a constant as float64, in the file in its own type."""
        kept = self.constant(name, value)
        if value.dtype == torch.float64:
            return kept
        return self.add("Cast", [kept], f"{name}_wide", to=_type(torch.float64))

    def standardised(self, head: Head) -> str:
        """Add the way from raw samples (n, …) to X (n, d)."""
        x, work = "samples", head.work
        if head.dtype != work:
            x = self.add("Cast", [x], "numbers", to=_type(work))
        if len(head.shape) > 1:
            x = self.add("Flatten", [x], "flat", axis=1)
        if head.unit:
            length = self.add("ReduceL2", [x], "length", axes=[1], keepdims=1)
            zero, one = (self.constant(name, torch.tensor(value, dtype=work))
                         for name, value in (("zero", 0), ("one", 1)))  # fmt: skip
            is_zero = self.add("Equal", [length, zero], "is_zero")
            length = self.add("Where", [is_zero, one, length], "divisor")
            x = self.add("Div", [x, length], "standardised")
        else:
            scale = 255 if head.dtype == torch.uint8 else 1
            mean = self.constant("mean", (head.mean * scale).to(work))
            std = self.constant("std", (head.std * scale).to(work))
            x = self.add("Sub", [x, mean], "centred")
            x = self.add("Div", [x, std], "standardised")
        return x if work == torch.float64 else self.add("Cast", [x], "X", to=_type(torch.float64))

    def probabilities(self, head: Head, x: str) -> str:
        """Add the way from X (n, d) to the mean of the networks' probabilities (n, k)."""
        p, dtype = self._mean(head, x), head.weights[0].dtype
        return self.add("Cast", [p], "probabilities", to=_type(dtype))

    def _mean(self, head: Head, x: str) -> str:
        m = len(head.weights[0])
        first, bias, *others = head.weights
        W = self.wide(head.names[0], first.flatten(0, 1).mT.contiguous())
        z = self.add("MatMul", [x, W], "products")
        z = self.add("Add", [z, self.wide(head.names[1], bias.flatten())], "scores")
        if m > 1:
            shape = self.constant("by_member", torch.tensor([0, m, first.shape[1]]))
            z = self.add("Reshape", [z, shape], "of_members")
            z = self.add("Transpose", [z], "members_first", perm=[1, 0, 2])
        if others:
            # Between Transpose and MatMul: onnxruntime would fuse these two, and has no kernel for
            # float64 then (tried: 1.20 to 1.23).
            z = self.add("Relu", [z], "hidden")
            z = self._second(others, z)
        p = self.add("Softmax", [z], "each", axis=-1)
        return p if m == 1 else self.add("ReduceMean", [p], "mean_of_members", axes=[0], keepdims=0)

    def _second(self, weights: list[Tensor], h: str) -> str:
        W, b = weights[0].mT.contiguous(), weights[1].unsqueeze(1)
        if len(W) == 1:
            W, b = W[0], b[0]
        z = self.add("MatMul", [h, self.wide("W2", W)], "second")
        return self.add("Add", [z, self.wide("b2", b)], "logits")


def _type(dtype: torch.dtype) -> int:
    """Return ONNX's number of a type."""
    helper = needed("onnx.helper", ".onnx", "onnx")
    number: int = helper.np_dtype_to_tensor_dtype(np.dtype(str(dtype).removeprefix("torch.")))
    return number
