"""The PyTorch twin of examples/gpu_check: the same shapes under the same names, each SDPA backend, and transformers' Qwen2.5-VL.

    pip install transformers==4.51.3 torch==2.7.1 peft==0.15.2
    python gpu.py --out peers [--ours gpu/gpu.json] [--rounds 15] [--model]

Times are medians of warm runs by CUDA events, on inputs larger than the cache. Writes gpu.json to --out, and with --ours prints
both programs side by side. --model adds the 7B shape with random weights: vision and prefill of 64 frames,
decoding, a training step of an adapter.
Ends with 1 without a GPU.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

WARM = 2
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
# Name, lengths, causal, query heads, key heads, width: those of examples/gpu_check/timing.rs.
ATTENTION = [
    ("16k causal, width 128", [16_384], True, 16, 16, 128),
    ("8,892 tokens of 7B, causal", [8_892], True, 28, 4, 128),
    ("552 windows of 64 patches", [64] * 552, False, 16, 16, 80),
    ("32 slices of 1,104 patches", [1_104] * 32, False, 16, 16, 80),
    ("256 CLIP images", [257] * 256, False, 16, 16, 64),
    ("8,892 tokens of 7B, causal, f16", [8_892], True, 28, 4, 128),
    ("4,096 tokens of 7B, causal, f32", [4_096], True, 28, 4, 128),
]

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path, required=True)
parser.add_argument("--ours", type=pathlib.Path, help="gpu.json of examples/gpu_check")
parser.add_argument("--rounds", type=int, default=15)
parser.add_argument("--model", action="store_true", help="the 7B shape too")
args = parser.parse_args()
if not torch.cuda.is_available():
    print("error: no GPU: torch.cuda.is_available() is false", file=sys.stderr)
    sys.exit(1)
torch.manual_seed(0)
times = []


# Read before a timed run, as examples/gpu_check/clock.rs does: the host is ahead of the card, and nothing of use, nor anything
# that must be written back, is left in its cache.
filler = torch.zeros(65_536, 1_024, device="cuda")


def median(f):
    """Median milliseconds of f(round)."""
    values = []
    for i in range(WARM + args.rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(32):
            filler.sum(1)
        start.record()
        f(i)
        end.record()
        torch.cuda.synchronize()
        values.append(start.elapsed_time(end))
    return statistics.median(values[WARM:])


def note(what, backend, milliseconds):
    print(f"{what}, {backend}: {milliseconds:.3f} ms", file=sys.stderr)
    times.append({"what": what, "with": backend, "milliseconds": milliseconds})


def attempt(what, backend, f):
    """A backend that does not take a shape is left out, and that is said."""
    try:
        note(what, backend, median(f))
    except RuntimeError as error:
        print(f"{what}, {backend}: {str(error).splitlines()[0]}", file=sys.stderr)
    torch.cuda.empty_cache()


def normal(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device="cuda", dtype=dtype)


def taken(backend, heads, x):
    """Keys or values as a backend takes them: "efficient" has no grouped heads, so each head is repeated for its group, outside
    the timer; its backward then lacks the sum over a group."""
    return x.repeat_interleave(heads // x.shape[1], 1) if backend == "efficient" else x


def attention():
    for name, lengths, causal, heads, kv_heads, width in ATTENTION:
        count, length = len(lengths), lengths[0]
        dtype = {"f16": torch.float16, "f32": torch.float32}.get(name.split()[-1], torch.bfloat16)
        q, grad = (normal(count, heads, length, width, dtype=dtype) for _ in range(2))
        k, v = (normal(count, kv_heads, length, width, dtype=dtype) for _ in range(2))
        for backend, kind in BACKENDS.items():
            own = [taken(backend, heads, x) for x in (k, v)]

            def forward(_, q=q, k=own[0], v=own[1]):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != k.shape[1])

            with sdpa_kernel(kind):
                with torch.no_grad():
                    attempt(f"attention forward, {name}", backend, forward)
                try:
                    leaves = [x.detach().requires_grad_() for x in (q, *own)]
                    out = forward(0, *leaves)
                except RuntimeError:
                    continue
                attempt(
                    f"attention backward, {name}",
                    backend,
                    lambda _: torch.autograd.grad(out, leaves, grad, retain_graph=True),
                )
                del out, leaves


def decoding():
    for name, sequences, keys in [
        ("decoding, one sequence of 10k", 1, 10_000),
        ("decoding, 8 behind a prefix of 10k", 8, 10_064),
    ]:
        # PyTorch shares no prefix: each sequence has a copy of it.
        layers = [(normal(sequences, 4, keys, 128), normal(sequences, 4, keys, 128)) for _ in range(8)]
        q = normal(sequences, 28, 1, 128)
        for backend, kind in BACKENDS.items():
            own = [[taken(backend, 28, x) for x in pair] for pair in layers]
            grouped = backend != "efficient"
            with sdpa_kernel(kind), torch.no_grad():
                attempt(name, backend, lambda i: F.scaled_dot_product_attention(q, *own[i % 8], enable_gqa=grouped))


def layer():
    """Each operation as PyTorch has it; rope as transformers composes it."""
    x, grad, weight = normal(8_892, 3_584), normal(8_892, 3_584), normal(3_584)
    heads, angles = normal(8_892, 28, 128), normal(8_892, 1, 64)
    gate, up = normal(8_892, 18_944), normal(8_892, 18_944)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)

    def turn(x):
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin

    for name, inputs, f, upstream in [
        ("rms-norm", (x, weight), lambda x, w: F.rms_norm(x, (3_584,), w, 1e-6), grad),
        ("rope", (heads,), turn, heads),
        ("swiglu", (gate, up), lambda gate, up: F.silu(gate) * up, up),
    ]:
        with torch.no_grad():
            attempt(f"{name}, 8,892 tokens of 7B", "eager", lambda _: f(*inputs))
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = f(*leaves)
        # Of all inputs at once; ours has a launch for the norm's input and two for its weight.
        attempt(
            f"{name} backward, 8,892 tokens of 7B",
            "eager",
            lambda _: torch.autograd.grad(out, leaves, upstream, retain_graph=True),
        )
        out = leaves = None


def log_probs():
    name = "512 tokens of 7B"
    hidden, head = normal(512, 3_584), normal(152_064, 3_584) * 0.02
    targets = torch.arange(512, device="cuda")[:, None] * 97

    def chosen(hidden):
        every = torch.log_softmax((hidden @ head.T).float(), -1)
        return every.gather(-1, targets)[:, 0], -(every.exp() * every).sum(-1)

    with torch.no_grad():
        attempt(f"log-probs, {name}", "log_softmax", lambda _: chosen(hidden))
    leaf = hidden.requires_grad_()
    loss = chosen(leaf)[0].sum()
    attempt(
        f"log-probs backward, {name}", "log_softmax", lambda _: torch.autograd.grad(loss, leaf, retain_graph=True)
    )


def similarity():
    for dtype, short in [(torch.float32, "f32"), (torch.bfloat16, "bf16")]:
        queries, frames = normal(1_000, 8, 768, dtype=dtype), normal(1_000, 3_600, 768, dtype=dtype)

        def compare(q, f):
            return F.normalize(q.float(), dim=-1) @ F.normalize(f.float(), dim=-1).transpose(1, 2)

        name = f"1000 x (8 x 3,600 x 768), {short}"
        with torch.no_grad():
            attempt(f"similarity forward, {name}", "normalize, matmul", lambda _: compare(queries, frames))
        try:
            leaves = [x.requires_grad_() for x in (queries, frames)]
            out = compare(*leaves)
            grad = torch.randn_like(out)
            attempt(
                f"similarity backward, {name}",
                "normalize, matmul",
                lambda _: torch.autograd.grad(out, leaves, grad, retain_graph=True),
            )
        except RuntimeError as error:
            print(f"similarity backward, {name}: {str(error).splitlines()[0]}", file=sys.stderr)
        leaves = out = grad = queries = frames = None
        torch.cuda.empty_cache()


def model():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    folder = pathlib.Path(__file__).parents[2] / "models/qwen2.5-vl-7b"
    config = Qwen2_5_VLConfig(**json.loads((folder / "config.json").read_text()), attn_implementation="sdpa")
    with torch.device("cuda"), default_dtype(torch.bfloat16):
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
    grid = torch.tensor([[32, 24, 46]], device="cuda")
    patches = int(grid.prod())
    pixels = normal(patches, 1176)
    ids = [*range(1_000, 1_030), *[config.video_token_id] * (patches // 4), *range(2_000, 2_030)]
    ids = torch.tensor([ids], device="cuda")
    given = dict(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=pixels,
        video_grid_thw=grid,
        second_per_grid_ts=torch.tensor([1.0], device="cuda"),
        do_sample=False,
    )
    prefills, decodes = [], []
    for _ in range(4):
        seconds = []
        for new in (1, 65):
            torch.cuda.synchronize()
            start = time.perf_counter()
            with torch.inference_mode():
                model.generate(**given, min_new_tokens=new, max_new_tokens=new)
            torch.cuda.synchronize()
            seconds.append(1e3 * (time.perf_counter() - start))
        prefills.append(seconds[0])
        decodes.append(seconds[1] - seconds[0])
    note("7B, vision and prefill of 64 frames", "transformers, sdpa", statistics.median(prefills[1:]))
    note("7B, decoding of one sequence", "transformers, sdpa", statistics.median(decodes[1:]))
    del given["do_sample"]
    training(model, given)


def training(model, given):
    """GRPO of an adapter of rank 16 on one trajectory of the prompt and 512 new tokens, layers run again in the backward pass."""
    from peft import LoraConfig, get_peft_model

    config, maps = model.config, r"model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=maps))
    base = model.base_model.model
    base.train()
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    leaves = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(leaves, lr=1e-4, weight_decay=0.0)
    new = torch.arange(3_000, 3_512, device=given["input_ids"].device)[None] % config.vocab_size
    ids = torch.cat([given["input_ids"], new], 1)
    with torch.no_grad():
        features = base.visual(given["pixel_values_videos"], grid_thw=given["video_grid_thw"])
        positions, _ = base.get_rope_index(
            ids, None, given["video_grid_thw"], given["second_per_grid_ts"], torch.ones_like(ids)
        )
    shown = (ids == config.video_token_id)[..., None]
    seconds = []
    for _ in range(4):
        synchronize()
        start = time.perf_counter()
        embeds = base.model.embed_tokens(ids)
        embeds = embeds.masked_scatter(shown.expand_as(embeds), features.to(embeds.dtype))
        hidden = base.model(inputs_embeds=embeds, position_ids=positions, use_cache=False)[0]
        # As trainers do: only the rows of the completion go through the output head.
        logits = base.lm_head(hidden[:, -new.shape[1] - 1 : -1]).float()
        chosen = torch.log_softmax(logits, -1).gather(-1, new[..., None])
        loss = -torch.exp(chosen - chosen.detach()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        synchronize()
        seconds.append(1e3 * (time.perf_counter() - start))
    note("7B, training step of an adapter on 64 frames", "transformers and peft, sdpa", statistics.median(seconds[1:]))


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


attention()
decoding()
similarity()
layer()
log_probs()
if args.model:
    model()
result = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "times": times}
args.out.mkdir(parents=True, exist_ok=True)
partial = args.out / "gpu.json.tmp"
partial.write_text(json.dumps(result, indent=2))
partial.rename(args.out / "gpu.json")
if args.ours:
    ours = json.loads(args.ours.read_text())
    if ours["device"] != result["device"]:
        print(f"other cards: {ours['device']} and {result['device']}", file=sys.stderr)
    print("| operation | msjoe, ms | best of PyTorch, ms | with | times as fast |")
    print("|---|---|---|---|---|")
    for one in ours["times"]:
        peers = [peer for peer in times if peer["what"] == one["what"]]
        if not peers:
            print(f"| {one['what']} | {one['milliseconds']:.3f} | not measured | | |")
            continue
        best = min(peers, key=lambda peer: peer["milliseconds"])
        ratio = best["milliseconds"] / one["milliseconds"]
        print(f"| {one['what']} | {one['milliseconds']:.3f} | {best['milliseconds']:.3f} | {best['with']} | {ratio:.2f} |")
else:
    print(json.dumps(result))
