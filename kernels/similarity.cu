// Cosine similarity of many (video, question) pairs in one launch: scale <q, f> / (|q| |f|) for every query q and frame
// f of a segment. Each frame is read once for up to 16 queries; all sums are f32. A squared length is taken plus 1e-16,
// so that a zero vector has similarity 0 and a finite gradient.

#include "similarity.cuh"

namespace similarity {

// Sums `count` values over the lanes of a warp. Afterwards lane l holds the totals from index l count / 32 on, one or
// count / 32 of them: sending half of what is left at every step costs a fifth of the shuffles of full sums.
template <int count>
__device__ __forceinline__ void sum_and_scatter(float (&values)[count]) {
    int left = count;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const bool upper = threadIdx.x & step;
        if (left > 1) {
            left /= 2;
#pragma unroll
            for (int i = 0; i < count / 2; ++i) {
                if (i >= left) break;
                const float sent = upper ? values[i] : values[i + left];
                const float kept = upper ? values[i + left] : values[i];
                values[i] = kept + __shfl_xor_sync(all_lanes, sent, step);
            }
        } else {
            values[0] += __shfl_xor_sync(all_lanes, values[0], step);
        }
    }
}

// The products of one piece of each row with all queries.
template <typename T, int room>
__device__ __forceinline__ void add_piece(float (&dots)[rows_per_warp * room], float (&squares)[rows_per_warp],
                                          const Queries<T>& queries, const float (&x)[rows_per_warp][values_in_16<T>],
                                          int piece) {
#pragma unroll
    for (int r = 0; r < rows_per_warp; ++r) {
#pragma unroll
        for (int i = 0; i < values_in_16<T>; ++i) squares[r] += x[r][i] * x[r][i];
    }
#pragma unroll
    for (int query = 0; query < room; ++query) {
#pragma unroll
        for (int plane = 0; plane < queries.planes; ++plane) {
            float y[4];
            unpack_16<float>(load_16(queries.at(query, piece, plane)), y);
#pragma unroll
            for (int r = 0; r < rows_per_warp; ++r) {
#pragma unroll
                for (int i = 0; i < 4; ++i) dots[r * room + query] += x[r][plane * 4 + i] * y[i];
            }
        }
    }
}

// Frames first .. first + 3 of a warp with `count` queries from `query` on.
template <typename T, int room>
__device__ __forceinline__ void match_rows(const Queries<T>& queries, const float* inverse, const T* frames, float* out,
                                           float* frame_inverse, const Part& part, int query, int count, int first,
                                           float scale) {
    const int lane = threadIdx.x % 32;
    const std::size_t width = std::size_t(queries.pieces) * values_in_16<T>;
    float dots[rows_per_warp * room] = {}, squares[rows_per_warp] = {};
    for (int piece = lane; piece < queries.pieces; piece += 32) {
        float x[rows_per_warp][values_in_16<T>] = {};
#pragma unroll
        for (int r = 0; r < rows_per_warp; ++r) {
            const T* from = frames + (part.frame_start + std::size_t(first + r)) * width + piece * values_in_16<T>;
            if (first + r < part.frames) unpack_16<T>(stream_16(from), x[r]);
        }
        add_piece<T, room>(dots, squares, queries, x, piece);
    }
    sum_and_scatter(dots);
    sum_and_scatter(squares);
    // The totals of a lane are all of row lane / 8, as is its total of squares.
    const int frame = first + lane / 8;
    if (frame >= part.frames) return;
    const float of_frame = 1 / sqrtf(squares[0] + squared_length_eps);
    if (query == 0 && lane % 8 == 0 && frame_inverse) frame_inverse[part.frame_start + frame] = of_frame;
    constexpr int held = rows_per_warp * room, own = held < 32 ? 1 : held / 32;
    if (held < 32 && lane % (32 / (held < 32 ? held : 32)) != 0) return;
#pragma unroll
    for (int i = 0; i < own; ++i) {
        const int column = (lane * held / 32 + i) % room;
        if (column >= count) continue;
        const float cosine = fminf(fmaxf(dots[i] * of_frame * inverse[column], -1.0f), 1.0f);
        out[std::size_t(query + column) * part.frames + frame] = cosine * scale;
    }
}

template <typename T, int room>
__device__ __forceinline__ void match(const T* all_queries, const T* frames, float* out, float* frame_inverse,
                                      const Part& part, int query, int width, float scale) {
    DYNAMIC_SHARED(bytes);
    SHARED_ARRAY(float, inverse, queries_at_once);
    const Queries<T> queries{reinterpret_cast<float*>(bytes), width / values_in_16<T>};
    const int count = min(room, part.queries - query);
    if (PLANTED(9, false, true)) __syncthreads();
    load_queries(queries, inverse, all_queries + std::size_t(part.query_start + query) * width, count, room);
    __syncthreads();
    const int end = min(part.frames, part.first + frames_per_block);
    for (int i = threadIdx.x / 32 * rows_per_warp; part.first + i < end; i += warps * rows_per_warp) {
        match_rows<T, room>(queries, inverse, frames, out, frame_inverse, part, query, count, part.first + i, scale);
    }
}

template <typename T>
__device__ __forceinline__ void run(const T* queries, const T* frames, const int* query_offsets,
                                    const int* frame_offsets, const long long* out_offsets, const int* tiles,
                                    float* out, float* frame_inverse, int width, float scale) {
    const Part part = part_at(tiles, blockIdx.x, query_offsets, frame_offsets);
    float* to = out + out_offsets[tiles[blockIdx.x * 2]];
    for (int query = 0; query < part.queries; query += queries_at_once) {
        const int left = part.queries - query;
        if (left <= 4) {
            match<T, 4>(queries, frames, to, frame_inverse, part, query, width, scale);
        } else if (left <= 8) {
            match<T, 8>(queries, frames, to, frame_inverse, part, query, width, scale);
        } else {
            match<T, 16>(queries, frames, to, frame_inverse, part, query, width, scale);
        }
    }
}

}  // namespace similarity

#define KERNEL(name, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(similarity::threads)                                              \
        name(const T* queries, const T* frames, const int* query_offsets, const int* frame_offsets,                \
             const long long* out_offsets, const int* tiles, float* out, float* frame_inverse, int width,          \
             float scale) {                                                                                        \
        similarity::run<T>(queries, frames, query_offsets, frame_offsets, out_offsets, tiles, out, frame_inverse,  \
                           width, scale);                                                                          \
    }                                                                                                              \
    ENTRY(name, similarity::threads, 0)

KERNEL(similarity_f32, float)
KERNEL(similarity_bf16, __nv_bfloat16)
KERNEL(similarity_f16, __half)
