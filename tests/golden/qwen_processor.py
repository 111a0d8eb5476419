"""Makes the goldens of Qwen2.5-VL's image processor, sizes and positions.

    python qwen_processor.py OUT_DIR      # with transformers==4.51.3, torch==2.7.1, Pillow, qwen-vl-utils==0.0.14
    python qwen_processor.py OUT_DIR      # again with transformers==5.23.0: adds its positions and sizes

Writes qwen_sizes.json, qwen_positions.json and qwen_pixels.safetensors; each holds the versions that made it.
Images are not stored, only what the reference makes of them: see frame(). Patch rows of larger frames are stored as the
sha256 of their little-endian f32 bytes, because they must agree bit for bit.
"""

import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

MAJOR = int(transformers.__version__.split(".")[0])
START, END, IMAGE, VIDEO = 150, 151, 152, 153


def frame(width, height, seed):
    """An RGB image: slow gradients, edges and some noise, all in integers."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    noise = ((x * 31 + y * 17 + c * 7 + seed * 101) * (x + 3 * y + 5)) % 23
    return ((x * (3 + c) + y * (5 - c) + 90 * ((x // 9 + y // 13 + seed) % 2) + noise) % 256).astype(np.uint8)


def write(path, content):
    """One case per line: small, and a change shows in a diff."""
    lines = [f"  {json.dumps(key)}: " + (
        "[\n" + ",\n".join("    " + json.dumps(item) for item in value) + "\n  ]" if isinstance(value, list) else json.dumps(value)
    ) for key, value in content.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def versions():
    import PIL

    found = {"transformers": transformers.__version__, "torch": torch.__version__, "pillow": PIL.__version__}
    if MAJOR < 5:
        import importlib.metadata

        found["qwen-vl-utils"] = importlib.metadata.version("qwen-vl-utils")
        found["torchvision"] = importlib.metadata.version("torchvision")
    return found


def resize_arguments():
    rng = random.Random(7)
    halves = [14, 42, 70, 98, 126, 154, 182, 350, 406]
    cases = [(h, w, 28, 784, 1 << 40) for h in halves for w in (14, 28, 70, 126)]
    for h, w in [(1080, 1920), (1920, 1080), (720, 1280), (480, 854), (28, 28), (27, 300), (28, 5600), (28, 5601), (20, 4000), (13, 13), (1, 1)]:
        for least, most in [(3136, 12845056), (3136, 1003520), (100352, 602112), (100352, 105369), (4 * 784, 32 * 784), (100352, 160561.17), (200000, 100000)]:
            cases.append((h, w, 28, least, most))
    for _ in range(250):
        least = rng.choice([784, 3136, 100352, rng.randrange(1, 400000)])
        most = least * rng.choice([1.0, 1.05, 1.5, 4, 30])
        cases.append((rng.randrange(1, 2500), rng.randrange(1, 2500), rng.choice([28, 28, 56, 32]), least, most))
    return cases


def sizes_with(function):
    rows = []
    for case in resize_arguments():
        height, width, factor, least, most = case
        try:
            size = list(function(height, width, factor=factor, min_pixels=least, max_pixels=most))
        except (ValueError, AssertionError):
            size = None
        rows.append([*case, size])
    return rows


def video_sizes():
    """fetch_video on lists of frames: [width, height, frames, options, size as image, size as video]."""
    from PIL import Image
    from qwen_vl_utils import vision_process

    seen = {}
    original = vision_process.fetch_image
    def fetch(element, *rest):
        seen["image"] = (image := original(element, *rest)).size
        return image
    def resize(video, size, **_):
        seen["video"] = size
        return video
    vision_process.fetch_image = fetch
    vision_process.transforms.functional.resize = resize
    rows = []
    for width, height in [(320, 180), (640, 480), (300, 1000), (854, 480), (64, 64)]:
        for frames in [1, 2, 5, 16]:
            for options in [{}, {"max_pixels": 235200}, {"min_pixels": 4 * 784, "max_pixels": 32 * 784}, {"total_pixels": 2000000}]:
                vision_process.fetch_video({"video": [Image.new("RGB", (width, height))] * frames, **options})
                rows.append([width, height, frames, options, [*seen["image"]], [*seen["video"]][::-1]])
    return rows


def make_sizes(path):
    content = json.loads(path.read_text()) if MAJOR >= 5 else {"versions": versions()}
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    if MAJOR >= 5:
        content["versions_5"] = versions()
        content["transformers_5"] = sizes_with(smart_resize)
    else:
        from qwen_vl_utils.vision_process import smart_resize as utils_resize

        content["transformers"] = sizes_with(smart_resize)
        content["qwen_vl_utils"] = sizes_with(utils_resize)
        content["videos"] = video_sizes()
    write(path, content)


def position_cases():
    rng = random.Random(11)
    cases = []
    for index in range(40):
        ids, images, videos, seconds = [1] * rng.randrange(1, 5), [], [], []
        for _ in range(rng.randrange(0, 4)):
            kind = rng.choice(["image", "video", "video"])
            grid = [1 if kind == "image" else rng.randrange(1, 5), 2 * rng.randrange(1, 5), 2 * rng.randrange(1, 5)]
            ids += [START] + [IMAGE if kind == "image" else VIDEO] * (grid[0] * grid[1] * grid[2] // 4) + [END]
            ids += [1] * rng.randrange(0, 4)
            (images if kind == "image" else videos).append(grid)
            if kind == "video":
                seconds.append(float(np.float32(rng.choice([0.5, 1.0, 0.7, 1.25, 2 / 0.12, 28.1, 2 / 24, rng.uniform(0, 9)]))))
        ids += [1] * rng.randrange(0, 6)
        cases.append({"ids": ids, "images": images, "videos": videos, "seconds": seconds, "tokens_per_second": 2 if index % 4 else 25})
    # Slow sampling of a long video: f32 and f64 differ at the floor.
    grid = [40, 2, 2]
    cases.append({"ids": [1, START] + [VIDEO] * 40 + [END], "images": [], "videos": [grid], "seconds": [float(np.float32(2 / 0.12))], "tokens_per_second": 2})
    return cases


def reference_positions(case):
    from transformers import Qwen2_5_VLConfig

    tensor = lambda values, kind=torch.long: torch.tensor(values, dtype=kind) if values else None
    vision = dict(tokens_per_second=case["tokens_per_second"])
    tokens = dict(vision_start_token_id=START, vision_end_token_id=END, image_token_id=IMAGE, video_token_id=VIDEO)
    config = Qwen2_5_VLConfig(vision_config=vision, **tokens)
    ids = torch.tensor([case["ids"]])
    grids = dict(
        image_grid_thw=tensor(case["images"]),
        video_grid_thw=tensor(case["videos"]),
        second_per_grid_ts=tensor(case["seconds"], torch.float32),
    )
    if MAJOR >= 5:
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel as Model

        grids["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    else:
        from transformers import Qwen2_5_VLForConditionalGeneration as Model
    # The method reads only the config: no weights are needed.
    model = Model.__new__(Model)
    torch.nn.Module.__init__(model)
    model.config = config
    positions, delta = model.get_rope_index(ids, **grids)
    return positions[:, 0].tolist(), int(delta)


def make_positions(path):
    content = json.loads(path.read_text()) if MAJOR >= 5 else {"versions": versions(), "cases": position_cases()}
    name = "extent" if MAJOR >= 5 else "max"
    if MAJOR >= 5:
        content["versions_5"] = versions()
    for case in content["cases"]:
        positions, delta = reference_positions(case)
        # The rows of ids are long and regular; their hash is enough to tell them apart, the last shows where they end.
        case[name] = {"delta": delta, "last": [axis[-1] for axis in positions], "sha256": digest(np.array(positions, dtype="<i8"))}
    write(path, content)


def digest(values):
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def make_pixels(path):
    from PIL import Image
    from safetensors.numpy import save_file
    from transformers import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
    exact = Qwen2VLImageProcessor(min_pixels=1, max_pixels=1 << 30)
    tensors, notes = {}, {}
    def keep(name, made, whole=False):
        rows, grid = np.asarray(made[0], dtype=np.float32), np.asarray(made[1]).reshape(-1)
        tensors[name + ".grid"] = grid.astype(np.int64)
        notes[name + ".sha256"] = digest(rows.astype("<f4"))
        if whole:
            tensors[name + ".rows"] = rows
    video = lambda frames: (lambda made: (made["pixel_values_videos"], made["video_grid_thw"]))(exact(images=None, videos=[np.stack(frames)], return_tensors="np"))
    keep("tiny", video([frame(28, 28, i) for i in range(3)]), whole=True)
    keep("video", video([frame(140, 84, i) for i in range(5)]))
    keep("image", (lambda made: (made["pixel_values"], made["image_grid_thw"]))(exact(Image.fromarray(frame(112, 56, 9)), return_tensors="np")))
    for name, (width, height) in {"reduced": (150, 100), "enlarged": (50, 31)}.items():
        image = Image.fromarray(frame(width, height, 4))
        limits = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=56 * 84)
        made = limits(image, return_tensors="np")
        keep(name, (made["pixel_values"], made["image_grid_thw"]))
        _, rows, columns = made["image_grid_thw"][0]
        tensors[name + ".pixels"] = np.asarray(image.resize((columns * 14, rows * 14), Image.Resampling.BICUBIC))
    save_file(tensors, path, {**versions(), **notes, "processor": type(processor).__name__, "made_by": "tests/golden/qwen_processor.py"})


def main():
    assert transformers.__version__ in ("4.51.3", "5.23.0"), transformers.__version__
    out = Path(sys.argv[1])
    make_sizes(out / "qwen_sizes.json")
    make_positions(out / "qwen_positions.json")
    if MAJOR < 5:
        make_pixels(out / "qwen_pixels.safetensors")


if __name__ == "__main__":
    main()
