"""Makes video_resize.safetensors: Pillow, CLIPImageProcessor and torchvision on a small synthetic image.

    python tests/golden/video_resize.py tests/golden/video_resize.safetensors

Pinned: transformers 4.51.3, Pillow 13.0.0, torch 2.7.1, torchvision 0.22.1, numpy as torch brings it.
Also makes the Qwen sampling table (qwen-vl-utils 0.0.14 smart_nframes + torch.linspace).
"""

import sys

import numpy as np
import PIL
import torch
import torchvision
import transformers
from PIL import Image
from qwen_vl_utils.vision_process import smart_nframes
from safetensors.numpy import save_file
from torchvision.transforms import InterpolationMode, functional
from transformers import CLIPImageProcessor

assert transformers.__version__ == "4.51.3", transformers.__version__
assert torch.__version__.startswith("2.7.1"), torch.__version__


def picture(height, width):
    """Smooth waves, hard edges and noise: what rings, blurs and rounds."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = 127 + 100 * np.sin(x / 5) * np.cos(y / 7)
    edges = 255.0 * ((x.astype(int) // 9 + y.astype(int) // 6) % 2)
    noise = np.random.RandomState(7).uniform(0, 255, (height, width))
    return np.clip(np.stack([waves, edges, noise], -1).round(), 0, 255).astype(np.uint8)


SIZES = [(96, 60), (31, 90), (150, 61), (97, 40), (140, 113), (1, 1)]  # width, height
SHRUNK = {"wide": (40, 25), "tall": (28, 40)}
CROPS = [16, 31, 32, 61, 80]


def resizes(tensors, image, name):
    for width, height in [SHRUNK[name], *SIZES]:
        tensors[f"{name}.pillow.{width}x{height}"] = np.asarray(
            Image.fromarray(image).resize((width, height), Image.BICUBIC)
        )
        as_tensor = torch.from_numpy(image).permute(2, 0, 1)
        out = functional.resize(as_tensor, [height, width], InterpolationMode.BICUBIC, antialias=True)
        tensors[f"{name}.torchvision.{width}x{height}"] = out.permute(1, 2, 0).contiguous().numpy()
    for edge in CROPS:
        processor = CLIPImageProcessor(
            size={"shortest_edge": edge}, crop_size=edge, do_rescale=False, do_normalize=False
        )
        out = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
        tensors[f"{name}.clip.{edge}"] = np.ascontiguousarray(out.transpose(1, 2, 0)).astype(np.uint8)


def qwen_table(tensors):
    rows, indices = [], []
    for total in [4, 5, 7, 30, 31, 99, 250, 390, 1000, 1537, 7321, 18000, 107892, 200001]:
        for video_fps in [25.0, 30000 / 1001, 60.0]:
            for fps in [2.0, 0.37]:
                n = smart_nframes({"fps": fps}, total, video_fps)
                rows.append([total, video_fps, fps, n])
                indices.append(torch.linspace(0, total - 1, n).round().long().numpy())
    tensors["qwen.rows"] = np.array(rows, dtype=np.float64)
    tensors["qwen.indices"] = np.concatenate(indices).astype(np.int32)


def main():
    tensors = {}
    for name, (height, width) in {"wide": (61, 97), "tall": (90, 62)}.items():
        image = picture(height, width)
        tensors[f"{name}.image"] = image
        resizes(tensors, image, name)
    qwen_table(tensors)
    versions = {
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "qwen-vl-utils": "0.0.14",
    }
    save_file(tensors, sys.argv[1], metadata=versions)


main()
