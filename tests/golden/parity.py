"""Compares what the `parity` example computed with transformers on any checkpoint.

    python parity.py inputs  --model qwen2.5-vl|clip --checkpoint DIR --inputs IN.safetensors [--seed N]
    cargo run --release --example parity -- --model ... --checkpoint DIR --inputs IN.safetensors --output OUT.safetensors
    python parity.py compare --model qwen2.5-vl|clip --checkpoint DIR --inputs IN.safetensors --outputs OUT.safetensors

`inputs` writes random inputs that fit the checkpoint: for Qwen2.5-VL two videos and an image between text, for CLIP images
and texts of unequal length. `compare` runs the reference (f32, CPU, eager attention, argmax without repetition penalty) on
the same inputs and exits with 1 when a tensor is off by more than --tolerance (relative to the largest value, at least 1)
or position ids or greedy tokens differ.

Needs transformers==4.51.3 and torch==2.7.1; another transformers may have another rule for positions.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file


def eos_tokens(checkpoint):
    for name in ["generation_config.json", "config.json"]:
        path = Path(checkpoint) / name
        eos = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if eos is not None:
            return eos if isinstance(eos, list) else [eos]
    return []


def qwen_inputs(checkpoint, rng):
    config = transformers.Qwen2_5_VLConfig.from_pretrained(checkpoint)
    vision = config.vision_config
    start, end = config.vision_start_token_id, getattr(config, "vision_end_token_id", None)
    special = {start, end, config.image_token_id, config.video_token_id, *eos_tokens(checkpoint)}
    words = [token for token in range(config.vocab_size) if token not in special]
    tensors, ids, rows = {}, [], {"image": [], "video": []}
    for part in [5, ("video", (3, 10, 6)), 4, ("image", (1, 6, 10)), ("video", (1, 8, 8)), 7]:
        if isinstance(part, int):
            ids += rng.choice(words, part).tolist()
            continue
        kind, (t, h, w) = part
        rows[kind].append((t, h, w))
        pad = config.image_token_id if kind == "image" else config.video_token_id
        ids += [start] + [pad] * (t * h * w // vision.spatial_merge_size**2) + ([] if end is None else [end])
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    for kind, pixels in [("image", "pixel_values"), ("video", "pixel_values_videos")]:
        count = sum(t * h * w for t, h, w in rows[kind])
        tensors[pixels] = torch.from_numpy(rng.uniform(-2, 2, (count, width)).astype(np.float32))
        tensors[f"{kind}_grid_thw"] = torch.tensor(rows[kind])
    tensors["second_per_grid_ts"] = torch.tensor([0.7, 1.25])
    tensors["input_ids"] = torch.tensor(ids)
    return tensors


def clip_inputs(checkpoint, rng):
    config = transformers.CLIPConfig.from_pretrained(checkpoint)
    text, side = config.text_config, config.vision_config.image_size
    # The legacy value 2 means that the end token is the largest id.
    end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    length = min(text.max_position_embeddings, 12)
    ids = np.full((3, length), end)
    for row, used in enumerate([2, length // 2, length - 1]):
        ids[row, :used] = rng.choice(np.setdiff1d(np.arange(text.vocab_size), [end]), used)
    pixels = rng.uniform(-2, 2, (4, 3, side, side)).astype(np.float32)
    return {"pixel_values": torch.from_numpy(pixels), "input_ids": torch.from_numpy(ids)}


def qwen_reference(checkpoint, inputs, count):
    load = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained
    model = load(checkpoint, torch_dtype=torch.float32, attn_implementation="eager").eval()
    # 4.51.3 lets the class default into the eager mask even when use_sliding_window is off.
    model.config.sliding_window = 1 << 20
    inputs = dict(inputs, input_ids=inputs["input_ids"][None])
    grids = {key: inputs.get(key) for key in ["image_grid_thw", "video_grid_thw", "second_per_grid_ts"]}
    positions, _ = model.get_rope_index(inputs["input_ids"], **grids)
    made = {"position_ids": positions[:, 0], "logits": model(**inputs).logits[0]}
    for kind, pixels in [("image", "pixel_values"), ("video", "pixel_values_videos")]:
        if pixels in inputs:
            made[f"vision_embeds_{kind}"] = model.visual(inputs[pixels], inputs[f"{kind}_grid_thw"])
    model.rope_deltas = None
    if count:
        out = model.generate(
            **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), max_new_tokens=count, do_sample=False,
            repetition_penalty=1.0, temperature=None, top_p=None, top_k=None,
            eos_token_id=eos_tokens(checkpoint) or None, pad_token_id=0,
        )
        made["greedy"] = out[0, inputs["input_ids"].shape[1]:]
    else:
        made["greedy"] = torch.zeros(0, dtype=torch.long)
    return made


def clip_reference(checkpoint, inputs):
    model = transformers.CLIPModel.from_pretrained(checkpoint, torch_dtype=torch.float32, attn_implementation="eager").eval()
    images, texts = model.get_image_features(inputs["pixel_values"]), model.get_text_features(inputs["input_ids"])
    normal = torch.nn.functional.normalize
    return {"image_embeds": images, "text_embeds": texts, "similarity": normal(texts, dim=-1) @ normal(images, dim=-1).T}


def compare(ours, reference, tolerance):
    good = ours.keys() == reference.keys()
    if not good:
        print(f"tensors differ: ours {sorted(ours)}, reference {sorted(reference)}")
    for name in sorted(ours.keys() & reference.keys()):
        a, b = ours[name], reference[name]
        if a.shape != b.shape:
            verdict, fine = f"shape {tuple(a.shape)}, reference {tuple(b.shape)}", False
        elif not b.is_floating_point():
            fine = torch.equal(a, b)
            verdict = "equal" if fine else f"{a.tolist()}, reference {b.tolist()}"
        else:
            worst, scale = (a - b).abs().max().item(), max(1.0, b.abs().max().item())
            fine = worst <= tolerance * scale
            verdict = f"worst difference {worst:.2e}, largest value {b.abs().max().item():.2f}"
        good &= fine
        print(f"{'ok  ' if fine else 'FAIL'} {name}: {verdict}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["inputs", "compare"])
    parser.add_argument("--model", choices=["qwen2.5-vl", "clip"], required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--inputs", required=True)
    parser.add_argument("--outputs", help="what the example wrote (compare)")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="as given to the example")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    if transformers.__version__ != "4.51.3":
        print(f"warning: transformers {transformers.__version__}, expected 4.51.3", file=sys.stderr)
    if args.step == "inputs":
        make = qwen_inputs if args.model == "qwen2.5-vl" else clip_inputs
        save_file(make(args.checkpoint, np.random.default_rng(args.seed)), args.inputs)
        return
    if args.outputs is None:
        parser.error("compare needs --outputs")
    inputs = load_file(args.inputs)
    if args.model == "qwen2.5-vl":
        reference = qwen_reference(args.checkpoint, inputs, args.max_new_tokens)
    else:
        reference = clip_reference(args.checkpoint, inputs)
    sys.exit(0 if compare(load_file(args.outputs), reference, args.tolerance) else 1)


if __name__ == "__main__":
    main()
