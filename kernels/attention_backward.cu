// The backward of attention_forward.cu: probabilities are computed anew from the saved log-sum-exp (FlashAttention-2,
// arXiv 2307.08691, section 3.1). One kernel gives dq by tiles of queries, another dk and dv by tiles of keys; each sum
// has one block and a fixed order, so results do not change from run to run.
//
// delta is the sum over the width of gradient times output, one number per row and head.

#include "segments.cuh"
#include "tile.cuh"

namespace attention_backward {

using namespace tile;

// Per warp 16 rows of the tile that stays (queries for dq, keys for dk and dv); `moving` rows of the tiles that pass.
template <typename Element, int head_width, int warp_count, int moving_count>
struct Plan {
    using T = Element;
    static constexpr int width = head_width, warps = warp_count, moving = moving_count;
    static constexpr int threads = warps * 32, rows = warps * 16;
    static constexpr int step = stride<T, width>;
    // Two tiles that stay, two stages of two tiles and two rows of numbers that pass.
    static constexpr int shared = bytes<T, width>(2 * rows + 4 * moving) + 4 * moving * int(sizeof(float));
};

template <typename P>
struct Inputs {
    const typename P::T *q, *k, *v, *grad;
    const float *lse, *delta;
};

template <typename P>
struct Tiles {
    typename P::T *left, *right, *stages;
    float* numbers;

    __device__ __forceinline__ explicit Tiles(unsigned char* bytes) {
        left = reinterpret_cast<typename P::T*>(bytes);
        right = left + P::rows * P::step;
        stages = right + P::rows * P::step;
        numbers = reinterpret_cast<float*>(stages + 4 * P::moving * P::step);
    }
    __device__ __forceinline__ typename P::T* stage(int i) const { return stages + i % 2 * 2 * P::moving * P::step; }
    __device__ __forceinline__ float* stage_numbers(int i) const { return numbers + i % 2 * 2 * P::moving; }
};

// Where row `row` of head `head` begins in a tensor of `heads` heads.
template <typename P>
__device__ __forceinline__ std::size_t place(int row, int heads, int head) {
    return (std::size_t(row) * heads + head) * P::width;
}

// Probability of a key and its gradient from score, log-sum-exp in powers of two, and gradient of the probability.
template <typename T>
__device__ __forceinline__ void probability(float& p, float& dp, bool seen, float lse, float delta,
                                            const Packing& packing) {
    p = seen ? exp2_of<T>(p * (packing.scale * log2_of_e) - lse) : 0;
    dp = p * (dp - delta) * packing.scale;
}

template <typename P>
__device__ __forceinline__ void load_keys(const Tiles<P>& tiles, int stage, const Inputs<P>& in,
                                          const Packing& packing, const Segment& segment, int first, int kv_head) {
    using T = typename P::T;
    const auto row = [&](const T* base, int i) -> const T* {
        if (first + i >= segment.keys()) return nullptr;
        return base + place<P>(segment.key_row(first + i), packing.kv_heads, kv_head);
    };
    T* to = tiles.stage(stage);
    load<T, P::width, P::moving, P::threads>(to, in.k, [&](int i) { return row(in.k, i); });
    load<T, P::width, P::moving, P::threads>(to + P::moving * P::step, in.v, [&](int i) { return row(in.v, i); });
    commit_copies();
}

// Adds the share of one tile of keys to dq. Rows begin at query `row`, keys at `first`.
template <typename P>
__device__ __forceinline__ void add_queries(float (&dq)[1][P::width / 8][4], const Tiles<P>& tiles, int stage,
                                            const float (&lse)[2], const float (&delta)[2], const Segment& segment,
                                            const Packing& packing, int row, int first) {
    using T = typename P::T;
    const T *keys = tiles.stage(stage), *values = keys + P::moving * P::step;
    float p[1][P::moving / 8][4], dp[1][P::moving / 8][4];
    clear(p);
    clear(dp);
    add_product_by_rows<T, P::width>(p, tiles.left + warp() * 16 * P::step, keys);
    add_product_by_rows<T, P::width>(dp, tiles.right + warp() * 16 * P::step, values);
    const int offset = packing.causal ? segment.offset() : segment.keys();
#pragma unroll
    for (int n = 0; n < P::moving / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int query = row + lane_row() + i / 2 * 8, key = first + n * 8 + lane_column() + i % 2;
            const bool seen = key < segment.keys() && key <= query + offset;
            probability<T>(p[0][n][i], dp[0][n][i], seen, lse[i / 2], delta[i / 2], packing);
        }
    }
    add_product_by_columns(dq, dp, keys);
}

template <typename P>
__device__ __forceinline__ void run_queries(const Inputs<P>& in, typename P::T* out, const Packing& packing) {
    using T = typename P::T;
    DYNAMIC_SHARED(bytes);
    const Tiles<P> tiles(bytes);
    const int head = blockIdx.x % packing.heads, tile = blockIdx.x / packing.heads;
    const int kv_head = kv_head_of(packing, head);
    const Segment segment = segment_at(packing, packing.tiles[tile * 2]);
    const int first = packing.tiles[tile * 2 + 1] * P::rows, row = first + warp() * 16;
    const auto query = [&](const T* base, int i) -> const T* {
        return i < segment.q_len ? base + place<P>(segment.q_start + i, packing.heads, head) : nullptr;
    };
    load<T, P::width, P::rows, P::threads>(tiles.left, in.q, [&](int i) { return query(in.q, first + i); });
    load<T, P::width, P::rows, P::threads>(tiles.right, in.grad, [&](int i) { return query(in.grad, first + i); });
    commit_copies();
    float lse[2], delta[2];
    for (int half = 0; half < 2; ++half) {
        const int own = row + lane_row() + half * 8;
        const std::size_t at = std::size_t(head) * packing.rows + segment.q_start + own;
        lse[half] = own < segment.q_len ? in.lse[at] * log2_of_e : 0;
        delta[half] = own < segment.q_len ? in.delta[at] : 0;
    }
    int seen = segment.keys();
    if (packing.causal) seen = min(seen, max(0, first + P::rows + segment.offset()));
    const int count = (seen + P::moving - 1) / P::moving;
    float dq[1][P::width / 8][4];
    clear(dq);
    if (count > 0) load_keys<P>(tiles, 0, in, packing, segment, 0, kv_head);
    for (int i = 0; i < count; ++i) {
        wait_for_copies<0>();
        __syncthreads();
        if (i + 1 < count) load_keys<P>(tiles, i + 1, in, packing, segment, (i + 1) * P::moving, kv_head);
        add_queries<P>(dq, tiles, i, lse, delta, segment, packing, row, i * P::moving);
    }
    if (count == 0) {
        wait_for_copies<0>();
        __syncthreads();
    }
    const float ones[1][2] = {{1, 1}};
    store(dq, ones, tiles.left + warp() * 16 * P::step, [&](int i) -> T* {
        return row + i < segment.q_len ? out + place<P>(segment.q_start + row + i, packing.heads, head) : nullptr;
    });
}

// Visits, in a fixed order, all tiles of queries that see a tile of keys: of the keys' own segment and of those that
// continue it, of every query head of the group.
template <typename P>
struct Visit {
    const Packing& packing;
    int own, first, kv_head;  // segment of the keys, first of them in it
    int reader, head, tile;   // where we are; `head` counts inside the group
    Segment segment;          // the reader's

    __device__ __forceinline__ int group() const { return packing.heads / packing.kv_heads; }
    __device__ __forceinline__ bool valid() const { return reader < packing.segments; }
    __device__ __forceinline__ int query_head() const {
        return PLANTED(3, head * packing.kv_heads + kv_head, kv_head * group() + head);
    }
    // Number of the tile's first key in the reader.
    __device__ __forceinline__ int key() const { return reader == own ? segment.prefix_len + first : first; }

    __device__ __forceinline__ int first_tile() const {
        return packing.causal ? max(0, key() - segment.offset()) / P::moving : 0;
    }
    __device__ __forceinline__ bool inside() const { return tile * P::moving < segment.q_len; }

    // To the first tile of reader `from`, or of the next one that has any.
    __device__ __forceinline__ void enter(int from) {
        for (reader = from; reader < packing.segments; ++reader) {
            if (reader != own && (!packing.prefix || packing.prefix[reader] != own)) {
                if (!packing.prefix) reader = packing.segments - 1;
                continue;
            }
            segment = segment_at(packing, reader);
            head = 0;
            tile = first_tile();
            if (inside()) return;
        }
    }

    __device__ __forceinline__ void next() {
        ++tile;
        if (inside()) return;
        tile = first_tile();
        if (++head < group()) return;
        enter(reader + 1);
    }
};

template <typename P>
__device__ __forceinline__ void load_queries(const Tiles<P>& tiles, int stage, const Inputs<P>& in,
                                             const Visit<P>& visit) {
    using T = typename P::T;
    const Packing& packing = visit.packing;
    const int first = visit.tile * P::moving, head = visit.query_head();
    const auto row = [&](const T* base, int i) -> const T* {
        if (first + i >= visit.segment.q_len) return nullptr;
        return base + place<P>(visit.segment.q_start + first + i, packing.heads, head);
    };
    T* to = tiles.stage(stage);
    load<T, P::width, P::moving, P::threads>(to, in.q, [&](int i) { return row(in.q, i); });
    T* grads = to + P::moving * P::step;
    load<T, P::width, P::moving, P::threads>(grads, in.grad, [&](int i) { return row(in.grad, i); });
    float* numbers = tiles.stage_numbers(stage);
    for (int i = threadIdx.x; i < P::moving; i += P::threads) {
        const bool exists = first + i < visit.segment.q_len;
        const std::size_t at = std::size_t(head) * packing.rows + visit.segment.q_start + (exists ? first + i : 0);
        copy_4(numbers + i, in.lse + at, exists ? 4 : 0);
        copy_4(numbers + P::moving + i, in.delta + at, exists ? 4 : 0);
    }
    commit_copies();
}

template <typename P>
struct KeyGradients {
    float dk[1][P::width / 8][4], dv[1][P::width / 8][4];
};

// Adds the share of one tile of queries to dk and dv. Scores are held transposed: rows are keys.
template <typename P>
__device__ __forceinline__ void add_keys(KeyGradients<P>& sums, const Tiles<P>& tiles, int stage,
                                         const Visit<P>& visit) {
    using T = typename P::T;
    const Packing& packing = visit.packing;
    const Segment& segment = visit.segment;
    const T *queries = tiles.stage(stage), *grads = queries + P::moving * P::step;
    const float *lse = tiles.stage_numbers(stage), *delta = lse + P::moving;
    float p[1][P::moving / 8][4], dp[1][P::moving / 8][4];
    clear(p);
    clear(dp);
    add_product_by_rows<T, P::width>(p, tiles.left + warp() * 16 * P::step, queries);
    add_product_by_rows<T, P::width>(dp, tiles.right + warp() * 16 * P::step, grads);
    const int offset = packing.causal ? segment.offset() : segment.keys();
#pragma unroll
    for (int n = 0; n < P::moving / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int column = n * 8 + lane_column() + i % 2, query = visit.tile * P::moving + column;
            const int key = visit.key() + warp() * 16 + lane_row() + i / 2 * 8;
            const bool seen = query < segment.q_len && key <= query + offset;
            const float own_delta = delta[PLANTED(10, column ^ 1, column)];
            probability<T>(p[0][n][i], dp[0][n][i], seen, lse[column] * log2_of_e, own_delta, packing);
        }
    }
    add_product_by_columns(sums.dv, p, grads);
    add_product_by_columns(sums.dk, dp, queries);
}

template <typename P>
__device__ __forceinline__ void run_keys(const Inputs<P>& in, typename P::T* dk, typename P::T* dv,
                                         const Packing& packing) {
    using T = typename P::T;
    DYNAMIC_SHARED(bytes);
    const Tiles<P> tiles(bytes);
    const int kv_head = blockIdx.x % packing.kv_heads, tile = blockIdx.x / packing.kv_heads;
    const int own = packing.tiles[tile * 2], first = packing.tiles[tile * 2 + 1] * P::rows;
    const int start = packing.cu_k[own] + first, rows = packing.cu_k[own + 1] - start;
    const auto key = [&](const T* base, int i) -> const T* {
        return i < rows ? base + place<P>(start + i, packing.kv_heads, kv_head) : nullptr;
    };
    load<T, P::width, P::rows, P::threads>(tiles.left, in.k, [&](int i) { return key(in.k, i); });
    load<T, P::width, P::rows, P::threads>(tiles.right, in.v, [&](int i) { return key(in.v, i); });
    commit_copies();
    KeyGradients<P> sums;
    clear(sums.dk);
    clear(sums.dv);
    Visit<P> visit{packing, own, first, kv_head, 0, 0, 0, {}};
    visit.enter(own);
    if (visit.valid()) load_queries<P>(tiles, 0, in, visit);
    for (int i = 0; visit.valid(); ++i) {
        wait_for_copies<0>();
        if (PLANTED(7, false, true)) __syncthreads();
        Visit<P> next = visit;
        next.next();
        if (next.valid()) load_queries<P>(tiles, i + 1, in, next);
        add_keys<P>(sums, tiles, i, visit);
        visit.reader = next.reader;
        visit.head = next.head;
        visit.tile = next.tile;
        visit.segment = next.segment;
    }
    wait_for_copies<0>();
    __syncthreads();
    const float ones[1][2] = {{1, 1}};
    const auto to = [&](T* base, int i) { return const_cast<T*>(key(base, warp() * 16 + i)); };
    store(sums.dk, ones, tiles.left + warp() * 16 * P::step, [&](int i) { return to(dk, i); });
    store(sums.dv, ones, tiles.right + warp() * 16 * P::step, [&](int i) { return to(dv, i); });
}

// One warp per row and head: heads are innermost in `out` and `grad`, outermost in `delta`.
template <typename T>
__device__ __forceinline__ void run_delta(const T* out, const T* grad, float* delta, int heads, int rows, int width) {
    const std::size_t item = std::size_t(blockIdx.x) * 8 + threadIdx.x / 32;
    if (item >= std::size_t(rows) * heads) return;
    float sum = 0;
    for (int i = threadIdx.x % 32 * values_in_16<T>; i < width; i += 32 * values_in_16<T>) {
        float a[8], b[8];
        unpack_16<T>(load_16(out + item * width + i), a);
        unpack_16<T>(load_16(grad + item * width + i), b);
#pragma unroll
        for (int j = 0; j < values_in_16<T>; ++j) sum += a[j] * b[j];
    }
    sum = sum_over_warp(sum);
    if (threadIdx.x % 32 == 0) delta[item % heads * rows + item / heads] = sum;
}

}  // namespace attention_backward

#define DELTA_KERNEL(name, T)                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                     \
        name(const T* out, const T* grad, float* delta, int heads, int rows, int width) {                 \
        attention_backward::run_delta<T>(out, grad, delta, heads, rows, width);                           \
    }                                                                                                     \
    ENTRY(name, 256, 0)

#define QUERY_KERNEL(name, T, width, warps, moving)                                                               \
    using name##_plan = attention_backward::Plan<T, width, warps, moving>;                                        \
    extern "C" __global__ void __launch_bounds__(name##_plan::threads)                                            \
        name(const T* q, const T* k, const T* v, const T* grad, const float* lse, const float* delta, T* dq,      \
             const int* cu_q, const int* cu_k, const int* prefix, const int* tiles, int heads, int kv_heads,      \
             int rows, int causal, float scale) {                                                                 \
        const Packing packing{cu_q, cu_k, prefix, tiles, heads, kv_heads, rows, 0, causal, scale};                \
        attention_backward::run_queries<name##_plan>({q, k, v, grad, lse, delta}, dq, packing);                   \
    }                                                                                                             \
    ENTRY(name, name##_plan::threads, name##_plan::shared)

#define KEY_KERNEL(name, T, width, warps, moving)                                                                 \
    using name##_plan = attention_backward::Plan<T, width, warps, moving>;                                        \
    extern "C" __global__ void __launch_bounds__(name##_plan::threads)                                            \
        name(const T* q, const T* k, const T* v, const T* grad, const float* lse, const float* delta, T* dk,      \
             T* dv, const int* cu_q, const int* cu_k, const int* prefix, const int* tiles, int heads,             \
             int kv_heads, int rows, int segments, int causal, float scale) {                                     \
        const Packing packing{cu_q, cu_k, prefix, tiles, heads, kv_heads, rows, segments, causal, scale};         \
        attention_backward::run_keys<name##_plan>({q, k, v, grad, lse, delta}, dk, dv, packing);                  \
    }                                                                                                             \
    ENTRY(name, name##_plan::threads, name##_plan::shared)

DELTA_KERNEL(attention_delta_f32, float)
DELTA_KERNEL(attention_delta_bf16, __nv_bfloat16)
DELTA_KERNEL(attention_delta_f16, __half)

#define KERNELS(suffix, T, width, moving_keys, moving_queries)                      \
    QUERY_KERNEL(attention_backward_q_##suffix##_##width, T, width, 4, moving_keys) \
    KEY_KERNEL(attention_backward_kv_##suffix##_##width, T, width, 4, moving_queries)
#define WIDTH(width, moving)                          \
    KERNELS(bf16, __nv_bfloat16, width, 64, moving)   \
    KERNELS(f16, __half, width, 64, moving)           \
    KERNELS(f32, float, width, 16, 16)

WIDTH(64, 64)
WIDTH(80, 64)
WIDTH(128, 32)

// For devices that give a block 99 KB of shared memory.
QUERY_KERNEL(attention_backward_q_bf16_128_32, __nv_bfloat16, 128, 4, 32)
QUERY_KERNEL(attention_backward_q_f16_128_32, __half, 128, 4, 32)
