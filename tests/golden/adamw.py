"""Makes adamw.json: torch.optim.AdamW, clip_grad_norm_ and transformers' schedules on small seeded numbers, in f64.

    python tests/golden/adamw.py tests/golden/adamw.json

Pinned: torch 2.7.1, transformers 4.51.3.
"""

import json
import sys

import torch
import transformers
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

assert torch.__version__.startswith("2.7.1"), torch.__version__
assert transformers.__version__ == "4.51.3", transformers.__version__

SHAPES = {"a.weight": (3, 5), "a.bias": (3,), "z.scale": ()}
STEPS = 7
CASES = {
    "defaults": dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
    "decay": dict(lr=3e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
    "other betas": dict(lr=1e-2, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.01),
}


def numbers(generator, shape, scale=1.0):
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def flat(tensor):
    return tensor.detach().reshape(-1).tolist()


def adamw(settings):
    generator = torch.Generator().manual_seed(1)
    values = {name: torch.nn.Parameter(numbers(generator, shape)) for name, shape in SHAPES.items()}
    start = {name: flat(value) for name, value in values.items()}
    optimizer = torch.optim.AdamW(values.values(), foreach=False, fused=False, **settings)
    steps = []
    for step in range(STEPS):
        lr = settings["lr"] / (1 + step % 3)
        for group in optimizer.param_groups:
            group["lr"] = lr
        # Gradients of very different size; in the fourth step all of them are zero.
        scale = [1.0, 1e-3, 100.0, 0.0, 1.0, 1e-6, 3.0][step]
        for value in values.values():
            value.grad = numbers(generator, value.shape, scale)
        gradients = {name: flat(value.grad) for name, value in values.items()}
        optimizer.step()
        steps.append(dict(lr=lr, gradients=gradients, values={name: flat(v) for name, v in values.items()}))
    moments = {
        name: {key: flat(optimizer.state[value][key]) for key in ("exp_avg", "exp_avg_sq")}
        for name, value in values.items()
    }
    return dict(settings=settings, start=start, steps=steps, moments=moments)


def clip(maximum):
    generator = torch.Generator().manual_seed(2)
    values = {name: torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for name, shape in SHAPES.items()}
    for value in values.values():
        value.grad = numbers(generator, value.shape)
    gradients = {name: flat(value.grad) for name, value in values.items()}
    norm = torch.nn.utils.clip_grad_norm_(values.values(), maximum).item()
    return dict(
        max=maximum, gradients=gradients, norm=norm, clipped={name: flat(v.grad) for name, v in values.items()}
    )


def schedule(shape, warmup, total, floor):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    made = {
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warmup, total),
        "cosine": lambda: get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, total, min_lr=floor)
        if floor
        else get_cosine_schedule_with_warmup(optimizer, warmup, total),
    }[shape]()
    rates = []
    for _ in range(total):
        rates.append(made.get_last_lr()[0])
        optimizer.step()
        made.step()
    return dict(shape=shape, peak=2e-4, warmup=warmup, total=total, floor=floor, rates=rates)


result = dict(
    torch=torch.__version__,
    transformers=transformers.__version__,
    shapes=SHAPES,
    adamw={name: adamw(settings) for name, settings in CASES.items()},
    clip=[clip(maximum) for maximum in (0.5, 100.0)],
    schedules=[
        schedule("constant", 3, 9, 0.0),
        schedule("linear", 4, 20, 0.0),
        schedule("cosine", 0, 11, 0.0),
        schedule("cosine", 5, 23, 1e-5),
    ],
)
with open(sys.argv[1], "w") as file:
    json.dump(result, file, indent=1)
    file.write("\n")
