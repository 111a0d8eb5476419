// Attention over packed sequences: softmax(scale q k^T) v inside each segment, with the log-sum-exp that the backward
// needs. One block works on the queries of one tile and head and walks over the keys, as FlashAttention-2 does
// (arXiv 2307.08691, algorithm 1): running maximum and sum, output scaled at the end.
//
// A query that sees no key has output 0 and log-sum-exp minus infinity.

#include "segments.cuh"
#include "softmax.cuh"
#include "tile.cuh"

namespace attention_forward {

using namespace tile;

// Tile sizes of one variant: `parts` times 16 query rows per warp; `stages` pairs of key and value tiles.
template <typename Element, int head_width, int warp_count, int part_count, int key_count, int stage_count>
struct Plan {
    using T = Element;
    static constexpr int width = head_width, warps = warp_count, parts = part_count, keys = key_count;
    static constexpr int stages = stage_count, threads = warps * 32, rows = warps * parts * 16;
    static constexpr int shared = bytes<T, width>(rows + 2 * stages * keys);
};

template <typename P>
struct Inputs {
    const typename P::T *q, *k, *v;
};

template <typename P>
__device__ __forceinline__ void load_keys(typename P::T* to, const Inputs<P>& in, const Packing& packing,
                                          const Segment& segment, int first, int kv_head) {
    using T = typename P::T;
    const auto row = [&](const T* base, int i) -> const T* {
        if (first + i >= segment.keys()) return nullptr;
        return base + (std::size_t(segment.key_row(first + i)) * packing.kv_heads + kv_head) * P::width;
    };
    load<T, P::width, P::keys, P::threads>(to, in.k, [&](int i) { return row(in.k, i); });
    T* values = to + P::keys * stride<T, P::width>;
    load<T, P::width, P::keys, P::threads>(values, in.v, [&](int i) { return row(in.v, i); });
    commit_copies();
}

// The part of a block's work that is this warp's: its first query in the segment, and what it has summed.
template <typename P>
struct Work {
    int first;
    float out[P::parts][P::width / 8][4];
    Softmax<P::parts> softmax;
};

// One tile of keys: scores, probabilities, output.
template <typename P>
__device__ __forceinline__ void attend(Work<P>& work, const typename P::T* queries, const typename P::T* keys,
                                       const Segment& segment, const Packing& packing, int first) {
    using T = typename P::T;
    float scores[P::parts][P::keys / 8][4];
    clear(scores);
    add_product_by_rows<T, P::width>(scores, queries, keys);
    const int last = first + P::keys - 1;
    if (last >= segment.keys() || (packing.causal && last > work.first + segment.offset())) {
        hide(scores, work.first, first, segment.keys(), packing.causal ? segment.offset() : segment.keys());
    }
    work.softmax.template update<T>(scores, work.out, packing.scale * log2_of_e);
    add_product_by_columns(work.out, scores, keys + P::keys * stride<T, P::width>);
}

template <typename P>
__device__ __forceinline__ void walk(Work<P>& work, typename P::T* queries, const Inputs<P>& in,
                                     const Packing& packing, const Segment& segment, int kv_head, int tiles) {
    using T = typename P::T;
    constexpr int step = stride<T, P::width>;
    T* stages = queries + P::rows * step;
    const T* own = queries + warp() * P::parts * 16 * step;
    if (tiles > 0) load_keys<P>(stages, in, packing, segment, 0, kv_head);
    for (int i = 0; i < tiles; ++i) {
        if (PLANTED(4, false, true)) wait_for_copies<0>();
        __syncthreads();
        if (PLANTED(4, true, false)) wait_for_copies<0>();
        const T* keys = stages + i % P::stages * 2 * P::keys * step;
        const bool more = i + 1 < tiles;
        if (P::stages == 2 && more) {
            load_keys<P>(stages + (i + 1) % 2 * 2 * P::keys * step, in, packing, segment, (i + 1) * P::keys, kv_head);
        }
        attend<P>(work, own, keys, segment, packing, i * P::keys);
        if (P::stages == 1 && more) {
            if (PLANTED(5, false, true)) __syncthreads();
            load_keys<P>(stages, in, packing, segment, (i + 1) * P::keys, kv_head);
        }
    }
    if (tiles == 0) {
        wait_for_copies<0>();
        __syncthreads();
    }
}

template <typename P>
__device__ __forceinline__ void run(const Inputs<P>& in, typename P::T* out, float* lse, const Packing& packing) {
    using T = typename P::T;
    DYNAMIC_SHARED(bytes);
    T* queries = reinterpret_cast<T*>(bytes);
    const int head = blockIdx.x % packing.heads, tile = blockIdx.x / packing.heads;
    const Segment segment = segment_at(packing, packing.tiles[tile * 2]);
    const int first = packing.tiles[tile * 2 + 1] * P::rows;
    const auto place = [&](int i) { return (std::size_t(segment.q_start + i) * packing.heads + head) * P::width; };
    load<T, P::width, P::rows, P::threads>(queries, in.q, [&](int i) -> const T* {
        return first + i < segment.q_len ? in.q + place(first + i) : nullptr;
    });
    commit_copies();

    Work<P> work;
    work.first = first + warp() * P::parts * 16;
    clear(work.out);
    work.softmax.start();
    int seen = segment.keys();
    if (packing.causal) seen = min(seen, max(0, first + P::rows + segment.offset()));
    walk<P>(work, queries, in, packing, segment, kv_head_of(packing, head), (seen + P::keys - 1) / P::keys);

    float factor[P::parts][2];
    work.softmax.finish(factor, packing.scale * log2_of_e, [&](int i, float value) {
        const int row = work.first + i;
        if (row < segment.q_len) lse[std::size_t(head) * packing.rows + segment.q_start + row] = value;
    });
    store(work.out, factor, queries + warp() * P::parts * 16 * stride<T, P::width>, [&](int i) -> T* {
        return work.first + i < segment.q_len ? out + place(work.first + i) : nullptr;
    });
}

}  // namespace attention_forward

#define KERNEL(name, T, width, warps, parts, keys, stages)                                                          \
    using name##_plan = attention_forward::Plan<T, width, warps, parts, keys, stages>;                              \
    extern "C" __global__ void __launch_bounds__(name##_plan::threads)                                              \
        name(const T* q, const T* k, const T* v, T* out, float* lse, const int* cu_q, const int* cu_k,              \
             const int* prefix, const int* tiles, int heads, int kv_heads, int rows, int causal, float scale) {     \
        const Packing packing{cu_q, cu_k, prefix, tiles, heads, kv_heads, rows, 0, causal, scale};                  \
        attention_forward::run<name##_plan>({q, k, v}, out, lse, packing);                                          \
    }                                                                                                               \
    ENTRY(name, name##_plan::threads, name##_plan::shared)

// 128 rows for long segments, 64 for short ones such as windows.
#define HALF_KERNELS(suffix, T, width)                                      \
    KERNEL(attention_forward_##suffix##_##width##_128, T, width, 4, 2, 64, 2) \
    KERNEL(attention_forward_##suffix##_##width##_64, T, width, 4, 1, 64, 1)
#define KERNELS(width)                           \
    HALF_KERNELS(bf16, __nv_bfloat16, width)     \
    HALF_KERNELS(f16, __half, width)             \
    KERNEL(attention_forward_f32_##width##_64, float, width, 4, 1, 32, 1)

KERNELS(64)
KERNELS(80)
KERNELS(128)
