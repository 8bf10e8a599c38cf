"""A model card: README.md of a folder of the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onelayer.data.naming import shown
from onelayer.training.summary import format_summary, network_name

MARK = "<!-- written by onelayer -->"
"""Mark of a card that may be written anew."""


def card(name: str, facts: Mapping[str, Any], summary: Mapping[str, Any], has_curves: bool) -> str:
    """Return the text of a model card.

    Args:
        name: name of the folder.
        facts: what :func:`onelayer.deploy.facts.facts_of` returns.
        summary: content of the run's summary.json; {} without.
        has_curves: whether curves.png is in the folder.
    """
    lines = [
        *_head(facts), "", MARK, f"# {_plain(name)}", "",
        *_what(facts), "", "## How to use it", "", *_use(facts), "",
        "## Accuracy", "", *_accuracy(facts, summary),
    ]  # fmt: skip
    if has_curves:
        lines += ["", "![Cost, loss and accuracy during training](curves.png)"]
    return "\n".join([*lines, *_certificate(facts)]) + "\n"


def _head(facts: Mapping[str, Any]) -> Iterator[str]:
    """Return the block of YAML that the Hub reads; JSON strings are YAML."""
    yield from ("---", "library_name: onelayer", "pipeline_tag: tabular-classification")
    yield "tags: [onelayer, softmax, linear-probe]"
    if dataset := facts.get("dataset"):
        yield from ("model-index:", "- name: onelayer", "  results:")
        yield "  - task: {type: tabular-classification}"
        quoted = json.dumps(dataset)
        yield f"    dataset: {{name: {quoted}, type: {quoted}}}"
        yield "    metrics:"
        yield from (
            f"    - {{type: accuracy, name: {words} accuracy, value: {facts[key]:.4f}}}"
            for key, words in (("val_accuracy", "validation"), ("test_accuracy", "test"))
            if key in facts
        )
    yield "---"


def _what(facts: Mapping[str, Any]) -> Iterator[str]:
    members, given = facts["members"], facts["input"]
    l2s = sorted({member["l2"] for member in members})
    count = f"{len(members)} network" + "s" * (len(members) > 1)
    yield f"{network_name(facts['hidden']).capitalize()}: {count}, trained with onelayer "
    yield f"{facts['onelayer']}."
    yield ""
    yield f"- data: {_plain(facts.get('dataset', 'not recorded'))}" + (
        f" (digest {facts['data_digest']})" if "data_digest" in facts else ""
    )
    if "backbone" in facts:
        backbone = facts["backbone"]
        yield f"- features: {_plain(backbone['name'])}, {_plain(backbone['weights'])} weights"
    yield f"- regulariser λ (l2): {', '.join(f'{l2:g}' for l2 in l2s)}"
    yield f"- seeds: {', '.join(str(member['seed']) for member in members)}"
    shape = " × ".join(str(size) for size in ("n", *given["shape"]))
    yield f"- input: {shape}, {given['dtype']}, as they are: standardisation is inside"
    yield f"- classes: {', '.join(map(_plain, facts['classes'][:20]))}" + (
        f", … ({len(facts['classes'])} in all)" if len(facts["classes"]) > 20 else ""
    )


def _use(facts: Mapping[str, Any]) -> Sequence[str]:
    shape = ", ".join(str(size) for size in facts["input"]["shape"])
    dtype = facts["input"]["dtype"]
    return [
        "```python",
        "import torch",
        "from onelayer import OneLayer",
        "",
        'network = OneLayer.from_pretrained(".")  # this folder, or owner/name on the Hub',
        "module = network.to_torch()  # a plain nn.Module",
        f"samples = torch.zeros(1, {shape}, dtype=torch.{dtype})",
        "probabilities = module(samples)",
        "print(network.classes[int(probabilities[0].argmax())])",
        "```",
    ]


def _accuracy(facts: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    splits = (("validation", "val_accuracy"), ("test", "test_accuracy"))
    known = [(words, key) for words, key in splits if key in facts]
    if not known:
        yield "Not measured."
        return
    yield "| split | accuracy (%) |"
    yield "|---|---|"
    for words, key in known:
        spread = f" ± {100 * facts[f'{key}_std']:.2f}" if f"{key}_std" in facts else ""
        yield f"| {words} | {100 * facts[key]:.2f}{spread} |"
    if len(facts["members"]) > 1:
        yield ""
        yield "Mean and standard deviation of the networks, each by itself."
    if "steps" in summary:
        yield from ("", "```text", *map(_plain, format_summary(dict(summary)).split("\n")), "```")


def _certificate(facts: Mapping[str, Any]) -> Iterator[str]:
    gaps = [member["gap"] for member in facts["members"] if "gap" in member]
    if gaps:
        yield from ("", "## Certificate", "")
        yield (
            "The problem is convex, and the weights are its optimum: the cost is above the minimum "
            f"by at most {max(gaps):.1e}."
        )


def _plain(text: Any) -> str:
    """Return a stranger's name without marks of HTML or of fences."""
    return shown(text).replace("<", "&lt;").replace("```", "'''")
