// The backward of similarity.cu. With unit vectors f' = f / |f| and q' = q / |q|, and w = scale x gradient:
//   dq = (g - q' <q', g>) / |q|  with  g = sum over frames of w f'
//   df = (h - f' <f', h>) / |f|  with  h = sum over queries of w q'
// where <f', h> is the sum over queries of gradient times similarity. Sums over frames go by tiles of 128 frames, whose
// partial results are added in order: one pass over the frames, the same result in every run.

#include "similarity.cuh"

namespace similarity {

constexpr int columns_per_thread = 4;

// Four values of a row.
template <typename T>
__device__ __forceinline__ void load_4(const T* from, float (&values)[columns_per_thread]) {
    if constexpr (is_float<T>) {
        unpack_16<T>(load_16(from), values);
    } else {
        const Pair words = load_8(from);
        unpack(words.x, values[0], values[1], T{});
        unpack(words.y, values[2], values[3], T{});
    }
}

// w f' of the block's frames for queries `query` .. `query` + 15, as one row of weights per query.
__device__ __forceinline__ void load_weights(float* weights, const float* grad, const float* frame_inverse,
                                             const Part& part, int query, float scale) {
    for (int i = threadIdx.x; i < queries_at_once * frames_per_block; i += threads) {
        const int row = query + i / frames_per_block, frame = part.first + i % frames_per_block;
        const bool exists = row < part.queries && frame < part.frames;
        const float gradient = exists ? grad[std::size_t(row) * part.frames + frame] : 0;
        weights[i] = exists ? gradient * scale * frame_inverse[part.frame_start + frame] : 0;
    }
}

// g of one tile of frames: `partial` has `max_queries` rows of `width` for each tile.
template <typename T>
__device__ __forceinline__ void run_partial(const T* frames, const float* frame_inverse, const float* all_grads,
                                            const int* query_offsets, const int* frame_offsets,
                                            const long long* out_offsets, const int* tiles, float* partial,
                                            int max_queries, int width, float scale) {
    SHARED_ARRAY(float, weights, queries_at_once * frames_per_block);
    const Part part = part_at(tiles, blockIdx.x, query_offsets, frame_offsets);
    const float* grad = all_grads + out_offsets[tiles[blockIdx.x * 2]];
    const int count = min(frames_per_block, part.frames - part.first);
    for (int query = 0; query < part.queries; query += queries_at_once) {
        __syncthreads();
        load_weights(weights, grad, frame_inverse, part, query, scale);
        __syncthreads();
        for (int column = threadIdx.x * columns_per_thread; column < width; column += threads * columns_per_thread) {
            float sums[queries_at_once][columns_per_thread] = {};
            const T* from = frames + (std::size_t(part.frame_start) + part.first) * width + column;
#pragma unroll 4
            for (int i = 0; i < count; ++i) {
                float x[columns_per_thread];
                load_4(from + std::size_t(i) * width, x);
#pragma unroll
                for (int row = 0; row < queries_at_once; ++row) {
                    const float weight = weights[row * frames_per_block + i];
#pragma unroll
                    for (int j = 0; j < columns_per_thread; ++j) sums[row][j] += weight * x[j];
                }
            }
            float* to = partial + (std::size_t(blockIdx.x) * max_queries + query) * width + column;
#pragma unroll
            for (int row = 0; row < queries_at_once; ++row) {
                if (query + row < part.queries) store_16(to + std::size_t(row) * width, pack_16<float>(sums[row]));
            }
        }
    }
}

// The segment of a query row.
__device__ __forceinline__ int segment_of(const int* offsets, int segments, int row) {
    int low = 0, high = segments;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (offsets[middle] <= row) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

__device__ __forceinline__ float sum_over_block(float x, float* shared) {
    x = sum_over_warp(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < warps; ++i) sum += shared[i];
    return sum;
}

// One block per query: adds the tiles' g and projects. Dynamic shared memory: g, `width` floats.
template <typename T>
__device__ __forceinline__ void run_queries(const T* queries, const float* partial, const int* query_offsets,
                                            const int* tile_starts, T* out, int segments, int max_queries, int width) {
    DYNAMIC_SHARED(bytes);
    SHARED_ARRAY(float, warp_sums, warps);
    float* g = reinterpret_cast<float*>(bytes);
    const int segment = segment_of(query_offsets, segments, blockIdx.x), row = blockIdx.x - query_offsets[segment];
    const T* query = queries + std::size_t(blockIdx.x) * width;
    float squares = 0, product = 0;
    for (int column = threadIdx.x; column < width; column += threads) {
        float sum = 0;
        for (int tile = tile_starts[segment]; tile < tile_starts[segment + 1]; ++tile) {
            sum += partial[(std::size_t(tile) * max_queries + row) * width + column];
        }
        g[column] = sum;
        const float x = to_float(query[column]);
        squares += x * x;
        product += x * sum;
    }
    squares = sum_over_block(squares, warp_sums);
    product = sum_over_block(product, warp_sums);
    const float inverse = 1 / sqrtf(squares + squared_length_eps);
    for (int column = threadIdx.x; column < width; column += threads) {
        const float x = to_float(query[column]);
        assign(out[std::size_t(blockIdx.x) * width + column], (g[column] - x * inverse * inverse * product) * inverse);
    }
}

// Queries `first` .. `first + count - 1` of a segment in shared memory, with one over their lengths.
template <typename T>
struct Block {
    Queries<T> queries;
    const float* inverse;
    int first, count;
};

// Adds the block's queries to h of a frame, a warp's work. `grads` and `similarities` are the frame's of query 0, `sums` its
// row of h between blocks, and the last block projects. What a lane reads from `sums` it has written itself.
template <typename T>
__device__ __forceinline__ void add_queries(const Block<T>& block, const Part& part, const float* grads,
                                            const float* similarities, float* weights, const T* frame, float of_frame,
                                            float* sums, T* out, float scale) {
    const int lane = threadIdx.x % 32, pieces = block.queries.pieces;
    const bool last = block.first + block.count == part.queries;
    __syncwarp();
    for (int query = lane; query < block.count; query += 32) {
        weights[query] = grads[std::size_t(block.first + query) * part.frames] * scale * block.inverse[query];
    }
    __syncwarp();
    float along = 0;
    for (int query = lane; last && query < part.queries; query += 32) {
        const std::size_t at = std::size_t(query) * part.frames;
        along += grads[at] * similarities[at];
    }
    along = sum_over_warp(along);
    for (int piece = lane; piece < pieces; piece += 32) {
        float h[values_in_16<T>] = {};
        float* carried = sums + piece * values_in_16<T>;
        if (block.first > 0) {
#pragma unroll
            for (int i = 0; i < values_in_16<T>; ++i) h[i] = carried[i];
        }
        for (int query = 0; query < block.count; ++query) {
#pragma unroll
            for (int i = 0; i < values_in_16<T>; ++i) {
                h[i] += weights[query] * block.queries.at(query, piece, i / 4)[i % 4];
            }
        }
        if (last) {
            float x[values_in_16<T>];
            unpack_16<T>(stream_16(frame + piece * values_in_16<T>), x);
#pragma unroll
            for (int i = 0; i < values_in_16<T>; ++i) h[i] = (h[i] - x[i] * of_frame * along) * of_frame;
            store_16(out + piece * values_in_16<T>, pack_16<T>(h));
        } else {
#pragma unroll
            for (int i = 0; i < values_in_16<T>; ++i) carried[i] = h[i];
        }
    }
}

// A warp per frame, for `at_once` queries after the other. Dynamic shared memory: these queries as floats, one over their
// lengths, and as many weights for each warp. `sums`: h of all frames between blocks of queries, unread with one block.
template <typename T>
__device__ __forceinline__ void run_frames(const T* all_queries, const T* frames, const float* frame_inverse,
                                           const float* similarities, const float* grads, const int* query_offsets,
                                           const int* frame_offsets, const long long* out_offsets, const int* tiles,
                                           T* out, float* sums, int at_once, int width, float scale) {
    DYNAMIC_SHARED(bytes);
    const Part part = part_at(tiles, blockIdx.x, query_offsets, frame_offsets);
    const Queries<T> queries{reinterpret_cast<float*>(bytes), width / values_in_16<T>};
    float* inverse = queries.values + std::size_t(at_once) * width;
    const int warp = threadIdx.x / 32;
    float* weights = inverse + at_once * (1 + warp);
    const long long base = out_offsets[tiles[blockIdx.x * 2]];
    const int end = min(part.frames, part.first + frames_per_block);
    for (int first = 0; first < part.queries; first += at_once) {
        const Block<T> block{queries, inverse, first, min(at_once, part.queries - first)};
        const T* from = all_queries + std::size_t(part.query_start + first) * width;
        __syncthreads();
        load_queries(queries, inverse, from, block.count, block.count);
        __syncthreads();
        for (int frame = part.first + warp; frame < end; frame += warps) {
            const std::size_t row = std::size_t(part.frame_start) + frame;
            add_queries(block, part, grads + base + frame, similarities + base + frame, weights, frames + row * width,
                        frame_inverse[row], sums + row * width, out + row * width, scale);
        }
    }
}

}  // namespace similarity

#define KERNELS(suffix, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(similarity::threads) similarity_backward_partial_##suffix(         \
        const T* frames, const float* frame_inverse, const float* grad, const int* query_offsets,                   \
        const int* frame_offsets, const long long* out_offsets, const int* tiles, float* partial, int max_queries,  \
        int width, float scale) {                                                                                   \
        similarity::run_partial<T>(frames, frame_inverse, grad, query_offsets, frame_offsets, out_offsets, tiles,   \
                                   partial, max_queries, width, scale);                                             \
    }                                                                                                               \
    ENTRY(similarity_backward_partial_##suffix, similarity::threads, 0)                                             \
    extern "C" __global__ void __launch_bounds__(similarity::threads) similarity_backward_queries_##suffix(         \
        const T* queries, const float* partial, const int* query_offsets, const int* tile_starts, T* out,           \
        int segments, int max_queries, int width) {                                                                 \
        similarity::run_queries<T>(queries, partial, query_offsets, tile_starts, out, segments, max_queries,        \
                                   width);                                                                          \
    }                                                                                                               \
    ENTRY(similarity_backward_queries_##suffix, similarity::threads, 0)                                             \
    extern "C" __global__ void __launch_bounds__(similarity::threads) similarity_backward_frames_##suffix(          \
        const T* queries, const T* frames, const float* frame_inverse, const float* out, const float* grad,         \
        const int* query_offsets, const int* frame_offsets, const long long* out_offsets, const int* tiles,         \
        T* frame_grads, float* sums, int at_once, int width, float scale) {                                         \
        similarity::run_frames<T>(queries, frames, frame_inverse, out, grad, query_offsets, frame_offsets,          \
                                  out_offsets, tiles, frame_grads, sums, at_once, width, scale);                    \
    }                                                                                                               \
    ENTRY(similarity_backward_frames_##suffix, similarity::threads, 0)

KERNELS(f32, float)
KERNELS(bf16, __nv_bfloat16)
KERNELS(f16, __half)
