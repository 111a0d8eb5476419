"""Frames of a video at a fixed rate with decord or torchcodec: the twin of benches/frames.rs.

    python benches/peers/frames.py VIDEO FPS [--reader decord|torchcodec] [--threads N] [--runs 3]

Prints one JSON object: reader, versions, frames, threads, seconds (median of the runs), runs, peak_rss_mib.
Pinned when the README's table was made: decord 0.6.0, torchcodec 0.5 with torch 2.7.1. Frames come as RGB at native size, in
chunks of 32 so that memory does not grow with the video; opening the file counts, importing the library does not.
"""

import argparse
import json
import resource
import statistics
import time


def decord_frames(path, fps, threads):
    import decord

    reader = decord.VideoReader(path, num_threads=threads)
    step, total = reader.get_avg_fps() / fps, len(reader)
    indices = [int(k * step) for k in range(int(total / step)) if int(k * step) < total]
    count = 0
    for at in range(0, len(indices), 32):
        count += reader.get_batch(indices[at : at + 32]).asnumpy().shape[0]
    return count


def torchcodec_frames(path, fps, threads):
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=threads, seek_mode="exact")
    end = decoder.metadata.end_stream_seconds
    times = [k / fps for k in range(int(end * fps) + 1) if k / fps < end]
    count = 0
    for at in range(0, len(times), 32):
        count += decoder.get_frames_played_at(times[at : at + 32]).data.shape[0]
    return count


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("video")
    parser.add_argument("fps", type=float)
    parser.add_argument("--reader", choices=["decord", "torchcodec"], default="decord")
    parser.add_argument("--threads", type=int, default=0, help="0 lets FFmpeg choose")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    module = __import__(args.reader)
    read = {"decord": decord_frames, "torchcodec": torchcodec_frames}[args.reader]
    runs = []
    for _ in range(args.runs):
        start = time.perf_counter()
        count = read(args.video, args.fps, args.threads)
        runs.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "reader": args.reader,
                "version": module.__version__,
                "frames": count,
                "threads": args.threads,
                "seconds": statistics.median(runs),
                "runs": runs,
                "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


main()
