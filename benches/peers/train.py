"""The Python twin of benches/train.rs: one training step of a small Qwen2.5-VL in transformers on the CPU, f32, random
weights, SDPA attention; logits of the learned tokens alone.

    pip install transformers==4.51.3 torch==2.7.1
    python train.py --part text|checkpointed|all --rounds 5 --threads 2

Prints one JSON object: seconds per step (median over the rounds) and the peak resident memory in MiB.
"""

import argparse
import json
import pathlib
import statistics
import time

import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

GRID, SEQUENCES, IMAGES, LENGTH, LEARNED = (1, 4, 4), 64, 8, 90, 24


def peak_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


parser = argparse.ArgumentParser()
parser.add_argument("--part", choices=["text", "checkpointed", "all"], required=True)
parser.add_argument("--rounds", type=int, default=5, help="timed runs, after one that is not timed")
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(0)
config = json.loads((pathlib.Path(__file__).parent / "train.json").read_text())
config = Qwen2_5_VLConfig(**config, attn_implementation="sdpa")
config.vision_config._attn_implementation = "sdpa"
model = Qwen2_5_VLForConditionalGeneration(config).train()
model.visual.requires_grad_(args.part == "all")
if args.part == "checkpointed":
    model.model.gradient_checkpointing_enable({"use_reentrant": False})

words = LENGTH - 6 * IMAGES
ids = torch.tensor(
    [[2, 5, 5, 5, 5, 3] * IMAGES + [10 + (s * 131 + i * 31) % 780 for i in range(words)] for s in range(SEQUENCES)]
)
grids = torch.tensor([GRID] * (SEQUENCES * IMAGES))
positions, _ = model.get_rope_index(ids, grids, None, None, torch.ones_like(ids))
pixels = torch.rand(SEQUENCES * IMAGES * 16, 1176) * 2 - 1
with torch.no_grad():
    given = model.visual(pixels, grid_thw=grids)

seconds = []
for _ in range(args.rounds + 1):
    start = time.perf_counter()
    model.zero_grad(set_to_none=True)
    features = model.visual(pixels, grid_thw=grids) if args.part == "all" else given
    embeds = model.model.embed_tokens(ids)
    embeds = embeds.masked_scatter((ids == config.image_token_id).unsqueeze(-1), features)
    hidden = model.model(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, -LEARNED - 1 : -1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -LEARNED:].flatten()).backward()
    seconds.append(time.perf_counter() - start)
print(json.dumps({
    "name": f"train-{args.part}",
    "with": f"transformers {transformers.__version__}, torch {torch.__version__}, sdpa",
    "threads": args.threads,
    "seconds": round(statistics.median(seconds[1:]), 3),
    "fastest": round(min(seconds[1:]), 3),
    "peak_mib": round(peak_mib()),
}))
