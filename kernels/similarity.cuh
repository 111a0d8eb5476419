// What the similarity kernels share: where a block works, and queries in shared memory.
#pragma once

#include "device.h"

namespace similarity {

using namespace device;

constexpr int threads = 256, warps = 8;
constexpr int frames_per_block = 128, rows_per_warp = 4, queries_at_once = 16;
constexpr float squared_length_eps = 1e-16f;

// A block's segment and the first of its frames in it.
struct Part {
    int query_start, queries, frame_start, frames, first;
};

__device__ __forceinline__ Part part_at(const int* tiles, int tile, const int* query_offsets,
                                        const int* frame_offsets) {
    const int segment = tiles[tile * 2];
    Part part;
    part.query_start = query_offsets[segment];
    part.queries = query_offsets[segment + 1] - part.query_start;
    part.frame_start = frame_offsets[segment];
    part.frames = frame_offsets[segment + 1] - part.frame_start;
    part.first = tiles[tile * 2 + 1] * frames_per_block;
    return part;
}

// Queries in shared memory as f32. The values that a lane multiplies with 16 bytes of a half-precision frame lie in two
// planes, so that neighbouring lanes read neighbouring 16 bytes.
template <typename T>
struct Queries {
    static constexpr int planes = values_in_16<T> / 4;
    float* values;
    int pieces;  // 16-byte pieces of a row of T

    __device__ __forceinline__ float* at(int query, int piece, int plane) const {
        return values + (std::size_t(query * planes + plane) * pieces + piece) * 4;
    }
};

// Copies `count` queries from `from`, zeros up to `room`, and one over each length; a warp per query.
template <typename T>
__device__ __forceinline__ void load_queries(const Queries<T>& to, float* inverse, const T* from, int count, int room) {
    const int lane = threadIdx.x % 32;
    const std::size_t width = std::size_t(to.pieces) * values_in_16<T>;
    for (int query = threadIdx.x / 32; query < room; query += warps) {
        float sum = 0;
        for (int piece = lane; piece < to.pieces; piece += 32) {
            float x[values_in_16<T>] = {};
            if (query < count) unpack_16<T>(load_16(from + query * width + piece * values_in_16<T>), x);
#pragma unroll
            for (int i = 0; i < values_in_16<T>; ++i) sum += x[i] * x[i];
#pragma unroll
            for (int plane = 0; plane < to.planes; ++plane) {
                store_16(to.at(query, piece, plane), pack_16<float>(x + plane * 4));
            }
        }
        sum = sum_over_warp(sum);
        if (lane == 0) inverse[query] = 1 / sqrtf(sum + squared_length_eps);
    }
}

}  // namespace similarity
