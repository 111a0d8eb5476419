// Attention of one new query row per sequence over cached keys. The keys are cut into items, so that a single sequence
// fills the device; an item whose keys several sequences share (a common prefix) is read once for all of them. The
// partial results of a query are then combined by their log-sum-exp.

#include "segments.cuh"
#include "softmax.cuh"
#include "tile.cuh"

namespace attention_decode {

using namespace tile;

// 16 rows: the four warps share the keys of a tile. 64 rows: each warp has 16 rows and all keys.
template <typename Element, int head_width, int row_count, int key_count>
struct Plan {
    using T = Element;
    static constexpr int width = head_width, rows = row_count, keys = key_count, threads = 128;
    static constexpr int shares = 64 / rows, own_keys = keys / shares, step = stride<T, width>;
    static constexpr int tiles = bytes<T, width>(rows + 4 * keys);
    static constexpr int merge = 64 * (width + 1) * int(sizeof(float));
    static constexpr int shared = tiles > merge ? tiles : merge;
    static_assert(rows == 16 || rows == 64, "four warps of 16 rows each, or of the same 16");
};

// Rows (queries, heads, width); the row of a block is a query and one head of the group that shares a key head.
template <typename P>
struct Inputs {
    const typename P::T *q, *keys, *values;
    int len, first_query, queries;
    int heads, kv_heads, kv_head;

    __device__ __forceinline__ int group() const { return heads / kv_heads; }
    __device__ __forceinline__ bool exists(int row) const { return row < queries * group(); }
    // Index of (query, head) among all, with queries counted from `base`.
    __device__ __forceinline__ std::size_t at(int base, int row) const {
        return std::size_t(base + row / group()) * heads + kv_head * group() + row % group();
    }
};

template <typename P>
__device__ __forceinline__ void load_keys(typename P::T* to, const Inputs<P>& in, int first) {
    using T = typename P::T;
    const auto row = [&](const T* base, int i) -> const T* {
        return first + i < in.len ? base + (std::size_t(first + i) * in.kv_heads + in.kv_head) * P::width : nullptr;
    };
    load<T, P::width, P::keys, P::threads>(to, in.keys, [&](int i) { return row(in.keys, i); });
    load<T, P::width, P::keys, P::threads>(to + P::keys * P::step, in.values, [&](int i) { return row(in.values, i); });
    commit_copies();
}

template <typename P>
struct Work {
    float out[1][P::width / 8][4];
    Softmax<1> softmax;
};

template <typename P>
__device__ __forceinline__ void walk(Work<P>& work, typename P::T* queries, const Inputs<P>& in, float scale) {
    using T = typename P::T;
    T* stages = queries + P::rows * P::step;
    const T* own = queries + (P::shares == 1 ? warp() * 16 * P::step : 0);
    const int share = P::shares == 1 ? 0 : warp() * P::own_keys;
    const int tiles = (in.len + P::keys - 1) / P::keys;
    load_keys<P>(stages, in, 0);
    for (int i = 0; i < tiles; ++i) {
        wait_for_copies<0>();
        __syncthreads();
        if (i + 1 < tiles) load_keys<P>(stages + (i + 1) % 2 * 2 * P::keys * P::step, in, (i + 1) * P::keys);
        const T* keys = stages + i % 2 * 2 * P::keys * P::step + share * P::step;
        float scores[1][P::own_keys / 8][4];
        clear(scores);
        add_product_by_rows<T, P::width>(scores, own, keys);
        const int first = i * P::keys + share;
        if (first + P::own_keys > in.len) hide(scores, 0, first, in.len, in.len);
        work.softmax.template update<T>(scores, work.out, scale * log2_of_e);
        add_product_by_columns(work.out, scores, keys + P::keys * P::step);
    }
    wait_for_copies<0>();
    __syncthreads();
}

// Weight of a part with log-sum-exp `lse` beside others, where `top` is the largest.
__device__ __forceinline__ float weight_of(float lse, float top) {
    return lse == minus_infinity ? 0 : expf(lse - top);
}

// Puts the warps' results side by side in shared memory and writes their combination.
template <typename P>
__device__ __forceinline__ void merge(Work<P>& work, float* sums, const Inputs<P>& in, int slot, float* partial,
                                      float* partial_lse, float scale) {
    float* lses = sums + 64 * P::width;
    float factor[1][2];
    work.softmax.finish(factor, scale * log2_of_e, [&](int i, float value) { lses[warp() * 16 + i] = value; });
#pragma unroll
    for (int n = 0; n < P::width / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = warp() * 16 + lane_row() + i / 2 * 8;
            sums[row * P::width + n * 8 + lane_column() + i % 2] = work.out[0][n][i] * factor[0][i / 2];
        }
    }
    __syncthreads();
    for (int item = threadIdx.x; item < P::rows * P::width; item += P::threads) {
        const int row = item / P::width, column = item % P::width;
        if (!in.exists(row)) return;
        float top = minus_infinity, total = 0, sum = 0;
        for (int i = row; i < 64; i += P::rows) top = fmaxf(top, lses[i]);
        for (int i = row; i < 64; i += P::rows) {
            const float weight = weight_of(lses[i], top);
            total += weight;
            sum += weight * sums[i * P::width + column];
        }
        const std::size_t to = in.at(slot, row);
        partial[to * P::width + column] = total > 0 ? sum / total : 0;
        if (column == 0) partial_lse[to] = total > 0 ? top + logf(total) : minus_infinity;
    }
}

template <typename P>
__device__ __forceinline__ void run(const typename P::T* q, const unsigned long long* keys,
                                    const unsigned long long* values, const int* items, float* partial,
                                    float* partial_lse, int heads, int kv_heads, float scale) {
    using T = typename P::T;
    DYNAMIC_SHARED(bytes);
    T* queries = reinterpret_cast<T*>(bytes);
    const int item = blockIdx.x / kv_heads;
    const Inputs<P> in{q,
                       reinterpret_cast<const T*>(keys[item]),
                       reinterpret_cast<const T*>(values[item]),
                       items[item * 4],
                       items[item * 4 + 1],
                       items[item * 4 + 2],
                       heads,
                       kv_heads,
                       int(blockIdx.x % kv_heads)};
    load<T, P::width, P::rows, P::threads>(queries, q, [&](int i) -> const T* {
        return in.exists(i) ? q + in.at(in.first_query, i) * P::width : nullptr;
    });
    commit_copies();
    Work<P> work;
    clear(work.out);
    work.softmax.start();
    walk<P>(work, queries, in, scale);
    merge<P>(work, reinterpret_cast<float*>(bytes), in, items[item * 4 + 3], partial, partial_lse, scale);
}

// One block of 128 threads per query and head, a thread for each column (the width is at most 128). Of 32 parts at a
// time each lane holds the slot and the weight of one and hands them round its warp: a column's loads then wait for
// these alone, not for one another.
template <typename T>
__device__ __forceinline__ void run_combine(const float* partial, const float* partial_lse, const int* slot_starts,
                                            const int* slots, T* out, int heads, int width) {
    const int query = int(blockIdx.x) / heads, head = int(blockIdx.x) % heads, lane = threadIdx.x % 32;
    const int begin = slot_starts[query], end = slot_starts[query + 1] - PLANTED(8, 1, 0);
    // Threads beyond the width read a column of others and write nothing: all lanes must take part in the shuffles.
    const int column = min(int(threadIdx.x), width - 1);
    const auto at = [&](int slot) { return std::size_t(slot) * heads + head; };
    float top = minus_infinity, total = 0, sum = 0;
    for (int i = begin + lane; i < end; i += 32) top = fmaxf(top, partial_lse[at(slots[i])]);
    top = max_over_warp(top);
    for (int first = begin; first < end; first += 32) {
        const int slot = slots[min(first + lane, end - 1)];
        const float weight = first + lane < end ? weight_of(partial_lse[at(slot)], top) : 0;
        // Up to a whole number of eight: the last slot again, with weight 0.
        const int count = (min(32, end - first) + 7) / 8 * 8;
#pragma unroll 8
        for (int i = 0; i < count; ++i) {
            const float share = __shfl_sync(all_lanes, weight, i);
            total += share;
            sum += share * partial[at(__shfl_sync(all_lanes, slot, i)) * width + column];
        }
    }
    if (int(threadIdx.x) < width) {
        assign(out[std::size_t(blockIdx.x) * width + column], total > 0 ? sum / total : 0);
    }
}

}  // namespace attention_decode

#define KERNEL(name, T, width, rows, keys)                                                                         \
    using name##_plan = attention_decode::Plan<T, width, rows, keys>;                                              \
    extern "C" __global__ void __launch_bounds__(name##_plan::threads)                                             \
        name(const T* q, const unsigned long long* keys_at, const unsigned long long* values_at, const int* items, \
             float* partial, float* partial_lse, int heads, int kv_heads, float scale) {                           \
        attention_decode::run<name##_plan>(q, keys_at, values_at, items, partial, partial_lse, heads, kv_heads,    \
                                           scale);                                                                 \
    }                                                                                                              \
    ENTRY(name, name##_plan::threads, name##_plan::shared)

#define COMBINE_KERNEL(name, T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                            \
        name(const float* partial, const float* partial_lse, const int* slot_starts, const int* slots, T* out,   \
             int heads, int width) {                                                                             \
        attention_decode::run_combine<T>(partial, partial_lse, slot_starts, slots, out, heads, width);           \
    }                                                                                                            \
    ENTRY(name, 128, 0)

#define KERNELS(width)                                                   \
    KERNEL(attention_decode_bf16_##width##_16, __nv_bfloat16, width, 16, 64) \
    KERNEL(attention_decode_bf16_##width##_64, __nv_bfloat16, width, 64, 64) \
    KERNEL(attention_decode_f16_##width##_16, __half, width, 16, 64)         \
    KERNEL(attention_decode_f16_##width##_64, __half, width, 64, 64)         \
    KERNEL(attention_decode_f32_##width##_16, float, width, 16, 32)          \
    KERNEL(attention_decode_f32_##width##_64, float, width, 64, 32)

KERNELS(64)
KERNELS(80)
KERNELS(128)

COMBINE_KERNEL(attention_combine_f32, float)
COMBINE_KERNEL(attention_combine_bf16, __nv_bfloat16)
COMBINE_KERNEL(attention_combine_f16, __half)
