// Packed sequences, and which keys a query sees.
#pragma once

#include "device.h"

// What every attention kernel is told about its tensors: q and out (rows, heads, width), k and v (.., kv_heads, width),
// lse and delta (heads, rows).
struct Packing {
    const int* cu_q;    // first query row of each segment, and the end of the last
    const int* cu_k;    // the same for keys
    const int* prefix;  // the segment whose keys come before a segment's own, or -1; may be null
    const int* tiles;   // (segment, tile in the segment) of each block, or of each `heads` blocks
    int heads, kv_heads, rows, segments, causal;
    float scale;
};

// The keys of a segment are numbered through: those of its prefix, then its own.
struct Segment {
    int q_start, q_len;
    int prefix_start, prefix_len;
    int k_start, k_len;

    __device__ __forceinline__ int keys() const { return prefix_len + k_len; }
    // Query i sees key j if j <= i + offset, where attention is causal: the last query sees all.
    __device__ __forceinline__ int offset() const { return keys() - q_len + PLANTED(2, 1, 0); }
    __device__ __forceinline__ int key_row(int key) const {
        return key < prefix_len ? prefix_start + key : k_start + key - prefix_len;
    }
};

__device__ __forceinline__ Segment segment_at(const Packing& packing, int index) {
    Segment segment;
    segment.q_start = packing.cu_q[index];
    segment.q_len = packing.cu_q[index + 1] - segment.q_start;
    segment.k_start = packing.cu_k[index];
    segment.k_len = packing.cu_k[index + 1] - segment.k_start;
    const int prefix = packing.prefix ? packing.prefix[index] : -1;
    segment.prefix_start = prefix < 0 ? 0 : packing.cu_k[prefix];
    segment.prefix_len = prefix < 0 ? 0 : packing.cu_k[prefix + 1] - segment.prefix_start;
    return segment;
}

// Query head h uses key head h / (heads / kv_heads).
__device__ __forceinline__ int kv_head_of(const Packing& packing, int head) {
    return PLANTED(3, head % packing.kv_heads, head / (packing.heads / packing.kv_heads));
}

constexpr float log2_of_e = 1.4426950408889634f;
constexpr float minus_infinity = -INFINITY;

namespace device {

// Exact where inputs are f32.
template <typename T>
__device__ __forceinline__ float exp2_of(float x) {
    if constexpr (is_float<T>) {
        return exp2f(x);
    } else {
        return exp2_fast(x);
    }
}

__device__ __forceinline__ float max_over_row(float x) {
    x = fmaxf(x, __shfl_xor_sync(all_lanes, x, 1));
    return fmaxf(x, __shfl_xor_sync(all_lanes, x, 2));
}

__device__ __forceinline__ float sum_over_row(float x) {
    x += __shfl_xor_sync(all_lanes, x, 1);
    return x + __shfl_xor_sync(all_lanes, x, 2);
}

}  // namespace device
