"""Opens the folders that `random_checkpoints` wrote with the reference implementation and compares tokenizers.

transformers==4.51.3, tokenizers==0.21.*, torch==2.7.1 (CPU)

    cargo run --release --example random_checkpoints -- --out DIR
    python tests/golden/check_random_checkpoints.py DIR [tests/golden/random_tokenizers.json]

Every key must match, every file must load through the Auto classes, a forward pass must be finite, and the slow
Python path (AutoTokenizer) must give the ids that the `tokenizers` library gives for tokenizer.json. With a second
argument those ids are stored as the golden for our own tokenizer.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
)

TEXTS = [
    "What colour is the car in the video?",
    " It's 12:45  o'clock —\n\n\tnaïve café, 北京, emoji 🎬!",
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>hi<|im_end|>\n",
]
GOLDEN = {
    "versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
    "cases": [],
}


def loaded(cls, folder, **kwargs):
    model, info = cls.from_pretrained(folder, output_loading_info=True, **kwargs)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[kind], (kind, info[kind])
    return model.eval()


def check_tokenizer(folder):
    fast, auto = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert fast.encode(text).ids == auto(text).input_ids, text
        plain = fast.encode(text, add_special_tokens=False).ids
        GOLDEN["cases"].append({"folder": folder.name, "text": text, "ids": plain, "decoded": fast.decode(plain)})
    return auto


def check_qwen(folder):
    tokenizer = check_tokenizer(folder)
    model = loaded(Qwen2_5_VLForConditionalGeneration, folder, torch_dtype="auto", attn_implementation="eager")
    config = model.config
    for name in ("image", "video"):
        assert tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") == getattr(config, f"{name}_token_id")
    settings = GenerationConfig.from_pretrained(folder)
    assert settings.eos_token_id == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = tokenizer.chat_template
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 180, 3), dtype=np.uint8))
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits.float()
    assert torch.isfinite(logits).all() and logits.shape[-1] == config.vocab_size
    print(f"{folder}: {sum(p.numel() for p in model.parameters())} parameters, {model.dtype}, "
          f"{inputs.input_ids.shape[1]} tokens, logits std {logits.std():.3f}")


def check_clip(folder):
    check_tokenizer(folder)
    model = loaded(CLIPModel, folder, torch_dtype="auto")
    processor = AutoProcessor.from_pretrained(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 180, 3), dtype=np.uint8))
    inputs = processor(text=["a red car", "two men"], images=[image], return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model(**inputs)
    assert torch.isfinite(out.logits_per_image.float()).all()
    eos = inputs.input_ids.max(dim=1).values
    assert (eos == processor.tokenizer.eos_token_id).all(), "the legacy pooling takes the highest id"
    print(f"{folder}: {sum(p.numel() for p in model.parameters())} parameters, {model.dtype}, "
          f"logits {out.logits_per_image.float().tolist()}")


if __name__ == "__main__":
    root = Path(sys.argv[1])
    check_qwen(root / "qwen2.5-vl")
    check_clip(root / "clip")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(GOLDEN, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
