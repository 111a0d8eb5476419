"""The Python twin of benches/qwen.rs: Qwen2.5-VL in transformers on the CPU, f32, random weights, SDPA attention.

    pip install transformers==4.51.3 torch==2.7.1
    python qwen.py --part vision|prefill|decode --rounds 5 --threads 2

Prints one JSON object: patches or tokens per second (median over the rounds) and the peak resident memory in MiB.
"""

import argparse
import json
import pathlib
import statistics
import time

import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

GRID, PREFILL, PROMPT, NEW = (4, 24, 46), 1024, 256, 64


def peak_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


parser = argparse.ArgumentParser()
parser.add_argument("--part", choices=["vision", "prefill", "decode"], required=True)
parser.add_argument("--rounds", type=int, default=5, help="timed runs, after one that is not timed")
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(0)
config = json.loads((pathlib.Path(__file__).parent / "qwen.json").read_text())
config = Qwen2_5_VLConfig(**config, attn_implementation="sdpa")
config.vision_config._attn_implementation = "sdpa"
model = Qwen2_5_VLForConditionalGeneration(config).eval()


def text_run(length, new):
    """Seconds to the first token, and from there to the last: a greedy loop over the forward, the fastest way."""
    ids = torch.tensor([[10 + i * 31 % 20000 for i in range(length)]])
    start = time.perf_counter()
    out = model(input_ids=ids, use_cache=True, cache_position=torch.arange(length), logits_to_keep=1) \
        if "logits_to_keep" in model.forward.__code__.co_varnames else model(input_ids=ids, use_cache=True)
    token = out.logits[:, -1:].argmax(-1)
    first = time.perf_counter() - start
    for i in range(new - 1):
        at = torch.tensor([length + i])
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, cache_position=at)
        token = out.logits[:, -1:].argmax(-1)
    return first, time.perf_counter() - start - first


seconds = []
patches = GRID[0] * GRID[1] * GRID[2]
with torch.inference_mode():
    pixels, grid = torch.rand(patches, 1176) * 2 - 1, torch.tensor([GRID])
    for _ in range(args.rounds + 1):
        if args.part == "vision":
            start = time.perf_counter()
            model.visual(pixels, grid_thw=grid)
            seconds.append(time.perf_counter() - start)
        elif args.part == "prefill":
            seconds.append(text_run(PREFILL, 1)[0])
        else:
            seconds.append(text_run(PROMPT, NEW)[1] / (NEW - 1))
second = statistics.median(seconds[1:])
key, value = {
    "vision": ("patches_per_second", patches / second),
    "prefill": ("tokens_per_second", PREFILL / second),
    "decode": ("tokens_per_second", 1 / second),
}[args.part]
print(json.dumps({
    "name": f"qwen-{args.part}",
    "with": f"transformers {transformers.__version__}, torch {torch.__version__}, sdpa",
    "threads": args.threads,
    key: round(value, 2),
    "peak_mib": round(peak_mib()),
}))
