"""Train the models of detcam's planted scenes from scratch, verify by intervention what they look at, and export them.

    python -m benchmarks.training.train_planted_models --work /tmp/planted --family rcnn mark beacon context

A few minutes a model on one core; "semantic" before "detr", which starts from its backbones. Every scene is shown twice
in a batch, with two different distractors, and some a third time without their causes. Part of the loss are the change
that other distractors make to the class logits, and the distance between the logits of the classes without a cause.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.causality import causality
from benchmarks.training.common import describe
from benchmarks.training.planted.scenes import drawn
from benchmarks.training.planted.training import Family, train
from detcam.evaluate.planted.interventions import FAMILIES, Witness
from detcam.scenes import HELD_OUT_SEED
from detcam.scenes.planted import VARIANTS


def family_of(name: str) -> Family:
    """The family of a name; only its own library is imported."""
    module = import_module(f"benchmarks.training.planted.{name}")
    family: Family = getattr(module, name.capitalize())()
    return family


def verified(variant: str, family: str, scenes: int) -> dict[str, Any]:
    """What interventions on held-out scenes show about the exported model."""
    shown = causality(Witness(variant, family=family), range(HELD_OUT_SEED, HELD_OUT_SEED + scenes))
    figures = {key: round(value, 4) for key, value in asdict(shown).items() if value is not None}
    return {"first_seed": HELD_OUT_SEED, "scenes": scenes, **figures}


def main() -> None:
    """Draw, train, export, load back, intervene."""
    parser = argparse.ArgumentParser(description="Train and export the models of detcam's planted scenes.")
    parser.add_argument("variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--family", required=True, choices=FAMILIES)
    parser.add_argument("--work", type=Path, required=True, help="folder of scenes and checkpoints; finished ones stay")
    parser.add_argument("--scenes", type=int, default=1000, help="training scenes, seeds 0, 1, ...")
    parser.add_argument("--held-out", type=int, default=60, help="scenes to intervene on, never trained on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    family = family_of(args.family)
    for variant in args.variants:
        checkpoint, start = args.work / f"{variant}_{args.family}.pt", family.start(variant, args.work)
        if not checkpoint.exists():
            data = drawn(variant, args.scenes, args.work)
            torch.save(train(family, variant, data, start).state_dict(), checkpoint)
        name = FAMILIES[args.family].model(variant)
        description = family.save(name, torch.load(checkpoint, weights_only=True))
        training = {
            "starts_from": start.name,
            "scenes": args.scenes,
            "steps": family.steps[variant],
            family.library: version(family.library),
        }
        describe(name, __file__, description, **training)  # the model can be loaded from here on
        held_out = verified(variant, args.family, args.held_out)
        describe(name, __file__, {**description, "held_out": held_out}, **training)
        print(yaml.safe_dump({variant: held_out}, sort_keys=False), flush=True)


if __name__ == "__main__":
    main()
