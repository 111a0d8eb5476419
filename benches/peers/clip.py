"""The Python twin of benches/clip.rs: images/s of CLIP's image tower in transformers on the CPU, f32, random weights.

    pip install transformers==4.51.3 torch==2.7.1
    python clip.py --batch 4 --rounds 5 --threads 2 [--size b32]

Prints one JSON object: images per second (median over the rounds) and the peak resident memory in MiB.
"""

import argparse
import json
import statistics
import time

import torch
import transformers
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

SIZES = {
    "l14": dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14,
                projection_dim=768),
    "b32": dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=32,
                projection_dim=512),
}


def peak_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, default=4, help="images per forward")
parser.add_argument("--rounds", type=int, default=5, help="timed forwards, after one that is not timed")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--size", choices=SIZES, default="l14")
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(0)
model = CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES[args.size])).eval()
pixel_values = torch.rand(args.batch, 3, 224, 224)
seconds = []
with torch.inference_mode():
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        model(pixel_values).image_embeds
        seconds.append(time.perf_counter() - start)
print(json.dumps({
    "name": f"clip-{args.size}",
    "with": f"transformers {transformers.__version__}, torch {torch.__version__}",
    "batch": args.batch,
    "threads": args.threads,
    "images_per_second": round(args.batch / statistics.median(seconds[1:]), 4),
    "peak_mib": round(peak_mib()),
}))
