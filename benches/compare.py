"""Runs the Rust benches and their Python twins alternately and prints one table.

    cargo bench --no-run
    python benches/compare.py --python PYTHON [--rounds 3] [--threads 2] [--video FILE] [NAME ...]

NAME is among clip, qwen-vision, qwen-prefill, qwen-decode, frames (default: all; frames needs --video). PYTHON is an
interpreter with transformers==4.51.3 and torch==2.7.1 (and decord, torchcodec for frames). Each round runs every
program once as its own process; the table gives medians over the rounds and the ratio to the peer.
"""

import argparse
import glob
import json
import os
import pathlib
import statistics
import subprocess

HERE = pathlib.Path(__file__).parent
NAMES = ["clip", "qwen-vision", "qwen-prefill", "qwen-decode", "frames"]


def binary(name):
    target = os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")
    built = [p for p in glob.glob(f"{target}/release/deps/{name}-*") if os.access(p, os.X_OK) and not p.endswith(".d")]
    if not built:
        raise SystemExit(f"{name}: not built; run cargo bench --no-run")
    return max(built, key=os.path.getmtime)


def commands(name, args):
    peers, threads = HERE / "peers", ["--threads", str(args.threads)]
    if name == "clip":
        return {"msjoe": [binary("clip"), "--batch", "4"],
                "transformers": [args.python, peers / "clip.py", "--batch", "4", *threads]}
    if name == "frames":
        rust = {"msjoe": [binary("frames"), args.video, "1", str(args.threads), "1"]}
        python = args.frames_python or args.python
        return rust | {reader: [python, peers / "frames.py", args.video, "1", "--reader", reader, "--runs", "1", *threads]
                       for reader in ["decord", "torchcodec"]}
    part = name.removeprefix("qwen-")
    return {"msjoe": [binary("qwen"), "--part", part, "--rounds", "3"],
            "transformers": [args.python, peers / "qwen.py", "--part", part, "--rounds", "3", *threads]}


def run(command, threads):
    env = os.environ | {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    out = subprocess.run([str(part) for part in command], env=env, check=True, capture_output=True, text=True)
    row = json.loads(out.stdout.strip().splitlines()[-1])
    if "seconds" in row:
        row["frames_per_second"], row["peak_mib"] = row["frames"] / row["seconds"], row["peak_rss_mib"]
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], default=[])
    parser.add_argument("--python", required=True)
    parser.add_argument("--frames-python", help="another interpreter for decord and torchcodec")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--video")
    args = parser.parse_args()
    names = args.names or [name for name in NAMES if name != "frames" or args.video]
    print("| what | program | per second | peak MiB | msjoe / peer |\n|---|---|---|---|---|")
    for name in names:
        programs = commands(name, args)
        results = {program: [] for program in programs}
        for _ in range(args.rounds):
            for program, command in programs.items():
                results[program].append(run(command, args.threads))
        rate = {}
        for program, rows in results.items():
            key = next(key for key in rows[0] if key.endswith("_per_second"))
            rate[program] = statistics.median(row[key] for row in rows)
            peak = statistics.median(row["peak_mib"] for row in rows)
            ratio = "" if program == "msjoe" else f"{rate['msjoe'] / rate[program]:.2f}"
            print(f"| {name} ({key.removesuffix('_per_second')}) | {program} | {rate[program]:.2f} | {peak:.0f} | {ratio} |",
                  flush=True)


main()
