"""Makes the CLIP goldens: two tiny random checkpoints in Hugging Face layout and what the reference computes with them.

    pip install transformers==4.51.3 torch==2.7.1 pillow numpy safetensors
    python clip.py OUT_DIR          # writes OUT_DIR/{large,legacy}/ and OUT_DIR/processor.safetensors

`large` has the proportions of ViT-L/14 (heads of equal width, MLP of four times the width, patch 14, quick_gelu, the
real end-of-text rule, tokenizer.json). `legacy` has odd sizes, exact GELU, `eos_token_id` 2, an old-style config with
`*_config_dict`, and only vocab.json + merges.txt. Everything is f32 on the CPU with eager attention; the versions are
in the metadata of each file.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

assert transformers.__version__ == "4.51.3", transformers.__version__
VERSIONS = {
    "transformers": transformers.__version__,
    "torch": torch.__version__,
    "pillow": PIL.__version__,
    "numpy": np.__version__,
    "dtype": "float32",
    "attention": "eager",
    "image_processor": "CLIPImageProcessor",
}
TEXTS = [
    "a photo of a red car",
    "  A  Photo\tof THE Red\n car  ",
    "",
    "what's in the box? 42 boxes, they're heavy!",
    "ein größeres Café, naïve façade — 東京タワー 🚗",
    "e\u0301tude (decomposed accent)",
    "a photo <|endoftext|> of a car",
    " ".join(["the man walks into the room and opens the door"] * 12),
]
CORPUS = """a photo of a red car the man walks into the room and opens the door what's in the box they're heavy
a woman is cooking in the kitchen the dog runs after the ball a photo of the boxes in the red room""".split()


def byte_alphabet():
    """The printable stand-ins of the 256 bytes, in the order of GPT-2 and CLIP."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in kept]
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(len(others))]


def train_bpe(merges_wanted):
    words = Counter(tuple(w[:-1]) + (w[-1] + "</w>",) for w in CORPUS)
    merges = []
    while len(merges) < merges_wanted:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged = Counter()
        for word, count in words.items():
            out, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    out.append("".join(best))
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] += count
        words = merged
    return merges


def write_vocabulary(folder, merges):
    alphabet = byte_alphabet()
    tokens = alphabet + [a + "</w>" for a in alphabet] + ["".join(m) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2"] + [" ".join(m) for m in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(vocab)


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "logit_scale":
                continue
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.05 * noise)


def token_rows(tokenizer, length):
    rows = tokenizer(TEXTS, truncation=True, max_length=length)["input_ids"]
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    eos = tokenizer.eos_token_id
    return torch.tensor([row + [eos] * (width - len(row)) for row in rows]), lengths


def checkpoint(folder, config_json, tokenizer_json, seed):
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_vocabulary(folder, train_bpe(60))
    for key in ("text_config", "text_config_dict"):
        if key in config_json:
            config_json[key]["vocab_size"] = vocab_size
            if config_json[key].get("eos_token_id") == "last":
                config_json[key]["eos_token_id"] = vocab_size - 1
    (folder / "config.json").write_text(json.dumps(config_json, indent=1) + "\n")

    config = CLIPConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    model = CLIPModel(config).eval()
    randomise(model, seed)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})

    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    if tokenizer_json:
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
    input_ids, lengths = token_rows(tokenizer, config.text_config.max_position_embeddings)

    size = config.vision_config.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    processor.save_pretrained(folder)
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, size, size, 3), dtype=np.uint8))
    pixel_values = processor([image.numpy() for image in images], return_tensors="pt")["pixel_values"]

    with torch.no_grad():
        image_embeds = model.get_image_features(pixel_values)
        text_embeds = model.get_text_features(input_ids)
        similarity = torch.nn.functional.cosine_similarity(text_embeds[:, None], image_embeds[None], dim=-1)
    out = {
        "images": images,
        "pixel_values": pixel_values,
        "input_ids": input_ids,
        "lengths": lengths,
        "image_embeds": image_embeds,
        "text_embeds": text_embeds,
        "similarity": similarity,
    }
    save_file({k: v.contiguous() for k, v in out.items()}, folder / "expected.safetensors", VERSIONS)
    (folder / "texts.json").write_text(json.dumps(TEXTS, indent=1) + "\n")


def synthetic(width, height):
    """Smooth gradients, hard edges and noise: what separates resampling filters and rounding."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(width * 1000 + height).integers(0, 64, (height, width))
    red = 255 * x // max(width - 1, 1)
    green = np.where((x // 5 + y // 7) % 2 == 0, 255, 0)
    blue = np.clip(255 * y // max(height - 1, 1) + noise - 32, 0, 255)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def processor_goldens(path):
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    out = {}
    for width, height in [(67, 41), (41, 67), (90, 33), (32, 32), (20, 31), (121, 64), (51, 50)]:
        image = synthetic(width, height)
        resized = processor.resize(image, {"shortest_edge": 32}, processor.resample, input_data_format="channels_last")
        cropped = processor.center_crop(resized, {"height": 32, "width": 32}, input_data_format="channels_last")
        values = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
        out[f"{width}x{height}.source"] = torch.from_numpy(image)
        out[f"{width}x{height}.cropped"] = torch.from_numpy(np.ascontiguousarray(cropped))
        out[f"{width}x{height}.pixel_values"] = values
    save_file(out, path, VERSIONS)


LARGE = {
    "model_type": "clip",
    "projection_dim": 24,
    "text_config": {
        "hidden_size": 24, "intermediate_size": 96, "num_attention_heads": 3, "num_hidden_layers": 3,
        "max_position_embeddings": 77, "projection_dim": 24, "eos_token_id": "last",
    },
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 4,
        "image_size": 56, "patch_size": 14, "projection_dim": 24,
    },
}
# `*_config_dict`, where present, replaces the whole of `*_config`: the values below that differ are never used.
LEGACY = {
    "model_type": "clip",
    "projection_dim": 20,
    "text_config": {"hidden_size": 512, "eos_token_id": 7},
    "text_config_dict": {
        "hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 2,
        "max_position_embeddings": 21, "hidden_act": "gelu", "layer_norm_eps": 1e-3, "eos_token_id": 2,
    },
    "vision_config": {
        "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_hidden_layers": 2,
        "image_size": 40, "patch_size": 8, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    },
    "vision_config_dict": None,
}

if __name__ == "__main__":
    root = Path(sys.argv[1])
    checkpoint(root / "large", LARGE, tokenizer_json=True, seed=1)
    checkpoint(root / "legacy", LEGACY, tokenizer_json=False, seed=2)
    processor_goldens(root / "processor.safetensors")
