"""Makes the Qwen2.5-VL goldens: tiny random checkpoints in Hugging Face layout and what the reference computes with them.

    python qwen.py OUT_DIR            # OUT_DIR is this folder

Needs transformers==4.51.3, torch==2.7.1, numpy, safetensors (the versions are stored in every expected.safetensors).
Reference: f32 (and one bf16 run), CPU, eager attention, greedy decoding by argmax without repetition penalty.

Checkpoints
    qwen_base   patch 14, 4 heads on 2, bf16 file, old tensor names, one file
    qwen_gqa    patch 4, GQA 3:1, f32 file, old names, sharded
    qwen_tied   patch 4, tied embeddings, f16 file, the names and nested config of transformers >= 4.52

Pixel rows are not stored: value i of a tensor with seed s is noise(i, s), see below; the test computes the same.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

VOCAB = 160
START, END, IMAGE, VIDEO = 150, 151, 152, 153
NEW_TOKENS = 12
# The two best logits of every greedy step differ by at least this, so that rounding cannot decide a token.
MARGIN = 2e-3


def noise(count, seed):
    """`count` values in [-1, 1), exact in f32: an integer hash of the index (the finaliser of MurmurHash3)."""
    mask = np.uint64(0xFFFFFFFF)
    x = (np.arange(count, dtype=np.uint64) + np.uint64(seed) * np.uint64(0x9E3779B9)) & mask
    for shift, factor in [(16, 0x85EBCA6B), (13, 0xC2B2AE35)]:
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & mask
    x ^= x >> np.uint64(16)
    return ((x >> np.uint64(9)).astype(np.float32) / np.float32(1 << 22)) - np.float32(1)


def config(hidden, heads, kv_heads, section, patch, vision_hidden, vision_heads, tied):
    return Qwen2_5_VLConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=hidden + 16,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=4096,
        # 4.51.3 lets its default of 4096 into the eager mask even when use_sliding_window is off.
        sliding_window=1 << 20,
        use_sliding_window=False,
        tie_word_embeddings=tied,
        rope_scaling={"type": "mrope", "mrope_section": section},
        vision_start_token_id=START,
        vision_end_token_id=END,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_config=dict(
            depth=2,
            hidden_size=vision_hidden,
            num_heads=vision_heads,
            intermediate_size=2 * vision_hidden + 4,
            out_hidden_size=hidden,
            patch_size=patch,
            window_size=8 * patch,
            fullatt_block_indexes=[1],
            tokens_per_second=2,
            in_chans=3,
        ),
    )


def randomise(model, seed):
    """Weights large enough that attention is far from uniform and every position matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        draw = torch.randn(weight.shape, generator=generator)
        if weight.ndim == 1 and name.endswith("weight"):
            weight.data = 1 + 0.2 * draw
        elif weight.ndim == 1:
            weight.data = 0.2 * draw
        elif "embed_tokens" in name:
            weight.data = (0.15 if model.config.tie_word_embeddings else 0.5) * draw
        else:
            weight.data = 1.2 / math.sqrt(weight[0].numel()) * draw


def prompt(parts, seed):
    """Token ids: a number is so many text tokens, ("image" | "video", grid) a medium."""
    rng, ids = np.random.default_rng(seed), []
    for part in parts:
        if isinstance(part, int):
            ids += rng.integers(0, START, part).tolist()
        else:
            kind, (t, h, w) = part
            ids += [START] + [IMAGE if kind == "image" else VIDEO] * (t * h * w // 4) + [END]
    return torch.tensor([ids])


# name -> (parts of the prompt, seconds per temporal slice of each video)
CASES = {
    "text": ([17], None),
    "image": ([4, ("image", (1, 6, 10)), 5], None),
    "video": ([3, ("video", (3, 10, 6)), 6], [0.7]),
    "mixed": (
        [2, ("video", (2, 4, 6)), 3, ("image", (1, 6, 4)), ("video", (1, 8, 8)), 4],
        [1.25, 2 / 0.12],
    ),
}


def inputs_of(case, width):
    parts, seconds = CASES[case]
    seed = list(CASES).index(case) + 1
    inputs = {"input_ids": prompt(parts, seed)}
    for kind, pixels, grids in [
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ]:
        media = [part[1] for part in parts if not isinstance(part, int) and part[0] == kind]
        if media:
            rows = sum(math.prod(grid) for grid in media)
            values = noise(rows * width, 2 * seed + (kind == "video"))
            inputs[pixels] = torch.from_numpy(values).view(rows, width)
            inputs[grids] = torch.tensor(media)
    if seconds:
        inputs["second_per_grid_ts"] = torch.tensor(seconds, dtype=torch.float32)
    return inputs


def greedy(model, inputs, eos):
    """generate(), checked against uncached full passes whose margin is known."""
    ids = inputs["input_ids"]
    out = model.generate(
        **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, repetition_penalty=1.0, eos_token_id=eos, pad_token_id=0,
        attention_mask=torch.ones_like(ids), temperature=None, top_p=None, top_k=None,
    )[0, ids.shape[1]:]
    for step, token in enumerate(out.tolist()):
        full = dict(inputs, input_ids=torch.cat([ids, out[None, :step]], dim=1))
        best = model(**full).logits[0, -1].topk(2)
        assert best.indices[0] == token, (step, best, token)
        assert best.values[0] - best.values[1] > MARGIN, (step, best)
    return out


def expected(model, cases, width, eos, half=None):
    tensors = {}
    for case in cases:
        model.rope_deltas = None
        inputs = inputs_of(case, width)
        grids = {k: inputs.get(k) for k in ["image_grid_thw", "video_grid_thw", "second_per_grid_ts"]}
        position_ids, delta = model.get_rope_index(inputs["input_ids"], **grids)
        result = {
            "input_ids": inputs["input_ids"][0],
            "position_ids": position_ids[:, 0].contiguous(),
            "rope_delta": delta.view(1).long(),
            "logits": model(**inputs).logits[0].clone(),
            "greedy": greedy(model, inputs, eos),
        }
        result |= {key: value for key, value in grids.items() if value is not None}
        for kind, pixels, grid in [("image", "pixel_values", "image_grid_thw"), ("video", "pixel_values_videos", "video_grid_thw")]:
            if pixels in inputs:
                result[f"vision_embeds_{kind}"] = model.visual(inputs[pixels], inputs[grid])
        if half is not None and case == "video":
            half.rope_deltas = None
            result["logits_bf16"] = half(**inputs).logits[0].to(torch.bfloat16)
            result["vision_embeds_video_bf16"] = half.visual(inputs["pixel_values_videos"], inputs["video_grid_thw"])
        tensors |= {f"{case}.{key}": value.contiguous() for key, value in result.items()}
    return tensors


def versions():
    return {
        "made_by": "tests/golden/qwen.py",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "attention": "eager",
        "dtype": "float32",
        "device": "cpu",
    }


def load(folder, dtype=torch.float32):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, torch_dtype=dtype, attn_implementation="eager")
    assert model.config._attn_implementation == model.visual.config._attn_implementation == "eager"
    return model.eval()


def to_new_layout(folder):
    """Renames tensors and nests the config as transformers >= 4.52 saves them."""
    tensors = load_file(folder / "model.safetensors")
    def rename(name):
        if name.startswith("visual."):
            return "model." + name
        return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    file = json.loads((folder / "config.json").read_text())
    outer = ["architectures", "model_type", "torch_dtype", "transformers_version", "vision_config", "tie_word_embeddings"]
    outer += [key for key in file if key.endswith("token_id")]
    text = {key: value for key, value in file.items() if key not in outer}
    text |= {"model_type": "qwen2_5_vl_text", "image_token_id": None, "video_token_id": None}
    nested = {key: file[key] for key in outer if key in file} | {"text_config": text}
    (folder / "config.json").write_text(json.dumps(nested, indent=2) + "\n")


def make(folder, settings, cases, dtype=torch.float32, shard="1GB", new_layout=False, seed=0):
    shutil.rmtree(folder, ignore_errors=True)
    settings._attn_implementation = "eager"
    model = Qwen2_5_VLForConditionalGeneration(settings)
    randomise(model, seed)
    model.tie_weights()
    model.generation_config.pad_token_id = 0
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    model = load(folder)
    width = 6 * settings.vision_config.patch_size ** 2
    # The end token is one that the first case reaches on its way, so that stopping is part of the golden.
    free = greedy(model, inputs_of(cases[0], width), None).tolist()
    eos = next(token for i, token in enumerate(free) if i >= 4 and token not in free[:i])
    for name in ["config.json", "generation_config.json"]:
        file = json.loads((folder / name).read_text())
        file["eos_token_id"] = eos if name == "config.json" else [eos, 0]
        (folder / name).write_text(json.dumps(file, indent=2) + "\n")
    half = load(folder, torch.bfloat16) if dtype == torch.bfloat16 else None
    tensors = expected(model, cases, width, [eos, 0], half)
    save_file(tensors, folder / "expected.safetensors", versions())
    if new_layout:
        to_new_layout(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(folder.name, sorted(path.name for path in folder.iterdir()), f"{size / 1e3:.0f} kB")
    for case in cases:
        print(" ", case, tensors[f"{case}.greedy"].tolist(), "eos", eos, "logits std", tensors[f"{case}.logits"].std().item())


def main():
    assert transformers.__version__ == "4.51.3", transformers.__version__
    out = Path(sys.argv[1])
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    make(out / "qwen_base", config(64, 4, 2, [2, 3, 3], 14, 32, 4, False), list(CASES), torch.bfloat16, seed=1)
    make(out / "qwen_gqa", config(48, 6, 2, [1, 1, 2], 4, 16, 2, False), ["text", "mixed"], shard="80KB", seed=2)
    make(out / "qwen_tied", config(48, 3, 1, [2, 3, 3], 4, 16, 2, True), ["image", "video"], torch.float16, new_layout=True, seed=6)


if __name__ == "__main__":
    main()
