"""Adapters of Python's PEFT against ours, on the checkpoint tests/golden/qwen_gqa.

    python peft_round_trip.py make                      # writes tests/golden/peft/legacy or .../current
    cargo build --release --examples
    python peft_round_trip.py check --examples ../../target/release/examples

`make` trains nothing: it draws random factors, saves them with PEFT, and records the logits of one prompt with an image,
with and without the adapter. `check` is the round trip: Python's files -> our logits; our files -> PEFT, every key
matched, the same logits; our merged checkpoint -> transformers, the same logits.

The names of the modules changed in transformers 4.52, so both generations are covered:
    legacy:  pip install transformers==4.51.3 peft==0.15.2 torch==2.7.1
    current: pip install transformers==4.57.6 peft==0.18.1 torch==2.7.1
"""

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
BASE = HERE / "qwen_gqa"
VERSIONS = {("4.51.3", "0.15.2"): "legacy", ("4.57.6", "0.18.1"): "current"}
CONFIGS = {
    # Look-ahead, fused projections of the vision tower, patterns, rank-stabilised.
    "legacy": dict(
        r=4, lora_alpha=6, use_rslora=True, target_modules=r"^(?!.*merger\.mlp\.2).*(q_proj|v_proj|down_proj|qkv|mlp\.0)$",
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 6, "down_proj": 2}, alpha_pattern={"v_proj": 3},
    ),
    "current": dict(
        r=3, lora_alpha=8, lora_dropout=0.05, target_modules=["q_proj", "k_proj", "o_proj", "gate_proj"],
        exclude_modules=r".*layers\.0\.mlp.*",
    ),
}


def base():
    load = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained
    return load(BASE, torch_dtype=torch.float32, attn_implementation="eager").eval()


def inputs():
    generator = torch.Generator().manual_seed(5)
    return {
        "input_ids": torch.tensor([7, 9, 150, 152, 152, 152, 152, 151, 33, 71, 100, 12]),
        "pixel_values": torch.rand(16, 96, generator=generator) * 4 - 2,
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def logits(model):
    given = inputs()
    model.config.sliding_window = 1 << 20
    return model(**dict(given, input_ids=given["input_ids"][None])).logits[0].float()


def make(folder, layout):
    bare = logits(base())
    model = peft.get_peft_model(base(), peft.LoraConfig(task_type="CAUSAL_LM", **CONFIGS[layout])).eval()
    generator = torch.Generator().manual_seed(6)
    for name, factor in model.named_parameters():
        if "lora_" in name:
            factor.copy_(torch.randn(factor.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    config = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config.replace(str(BASE), "qwen_gqa") + "\n")
    (folder / "README.md").unlink(missing_ok=True)
    tensors = dict(inputs(), logits=logits(model), base_logits=bare)
    versions = {"transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__}
    save_file(tensors, folder / "expected.safetensors", metadata=versions)


def same(what, ours, theirs, tolerance=5e-5):
    worst = (ours - theirs).abs().max().item()
    print(f"{'ok  ' if worst <= tolerance else 'FAIL'} {what}: worst difference {worst:.1e}")
    return worst <= tolerance


def check(examples, layout):
    theirs = HERE / "peft" / layout
    expected = load_file(theirs / "expected.safetensors")["logits"]
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        run = lambda *arguments: subprocess.run([str(a) for a in arguments], check=True, stdout=subprocess.DEVNULL)
        save_file(inputs(), scratch / "in.safetensors")
        run(examples / "parity", "--model", "qwen2.5-vl", "--checkpoint", BASE, "--adapter", theirs,
            "--inputs", scratch / "in.safetensors", "--output", scratch / "out.safetensors")
        good &= same("PEFT's files, our logits", load_file(scratch / "out.safetensors")["logits"], expected)

        ours = scratch / "ours"
        run(examples / "adapter", "convert", "--adapter", theirs, "--names", layout, "--out", ours)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = peft.PeftModel.from_pretrained(base(), ours).eval()
        unmatched = [str(w.message) for w in caught if "adapter keys" in str(w.message)]
        loaded, written = peft.get_peft_model_state_dict(model), load_file(ours / "adapter_model.safetensors")
        matched = loaded.keys() == written.keys() and all(torch.equal(loaded[k], written[k]) for k in written)
        print(f"{'ok  ' if matched and not unmatched else 'FAIL'} our files, PEFT's keys: {len(written)} matched {unmatched}")
        good &= matched and not unmatched
        good &= same("our files, PEFT's logits", logits(model), expected)

        run(examples / "adapter", "merge", "--base", BASE, "--adapter", theirs, "--out", scratch / "merged")
        load = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained
        merged = load(scratch / "merged", torch_dtype=torch.float32, attn_implementation="eager").eval()
        good &= same("our merged checkpoint, transformers' logits", logits(merged), expected)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["make", "check"])
    parser.add_argument("--examples", type=Path, help="folder of the built examples (check)")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    layout = VERSIONS.get((transformers.__version__, peft.__version__))
    if layout is None:
        sys.exit(f"transformers {transformers.__version__} with peft {peft.__version__}, expected one of {list(VERSIONS)}")
    if args.step == "make":
        make(HERE / "peft" / layout, layout)
    elif args.examples is None:
        parser.error("check needs --examples")
    else:
        sys.exit(0 if check(args.examples, layout) else 1)


if __name__ == "__main__":
    main()
