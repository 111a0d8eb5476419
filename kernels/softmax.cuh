// Softmax over scores that come tile by tile, held as tile.cuh describes.
#pragma once

#include "segments.cuh"
#include "tile.cuh"

namespace tile {

// Scores of keys that do not exist or that a query may not see become minus infinity. Rows start at query `row` and
// columns at key `column`; query i sees the keys up to i + offset.
template <int parts, int columns>
__device__ __forceinline__ void hide(float (&scores)[parts][columns][4], int row, int column, int keys, int offset) {
#pragma unroll
    for (int m = 0; m < parts; ++m) {
#pragma unroll
        for (int n = 0; n < columns; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int query = row + m * 16 + lane_row() + i / 2 * 8;
                const int key = column + n * 8 + lane_column() + i % 2;
                if (key >= keys || key > query + offset) scores[m][n][i] = minus_infinity;
            }
        }
    }
}

// Running maximum of the scores and sum of the probabilities of each row of a lane. The sums are of the lane's own
// columns until `finish`. `scale`, above 0, takes scores to powers of two.
template <int parts>
struct Softmax {
    float top[parts][2], sum[parts][2];

    __device__ __forceinline__ void start() {
#pragma unroll
        for (int m = 0; m < parts; ++m) {
            top[m][0] = top[m][1] = minus_infinity;
            sum[m][0] = sum[m][1] = 0;
        }
    }

    // Turns scores into probabilities, up to the factor that `finish` gives, and scales what was summed with the former
    // maximum.
    template <typename T, int columns, int wide>
    __device__ __forceinline__ void update(float (&scores)[parts][columns][4], float (&out)[parts][wide][4],
                                           float scale) {
#pragma unroll
        for (int m = 0; m < parts; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) update_row<T>(scores[m], out[m], scale, m, half);
        }
    }

    template <typename T, int columns, int wide>
    __device__ __forceinline__ void update_row(float (&scores)[columns][4], float (&out)[wide][4], float scale, int m,
                                               int half) {
        float highest = minus_infinity;
#pragma unroll
        for (int n = 0; n < columns; ++n) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) highest = fmaxf(highest, scores[n][i]);
        }
        const float before = top[m][half];
        const float now = PLANTED(6, 0, fmaxf(before, max_over_row(highest)));
        top[m][half] = now;
        // Nothing seen so far: any finite number keeps infinity minus infinity away.
        const float base = now == minus_infinity ? 0 : now;
        const float scaled_base = base * scale, fade = exp2_of<T>((before - base) * scale);
        float added = 0;
#pragma unroll
        for (int n = 0; n < columns; ++n) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
                scores[n][i] = exp2_of<T>(scores[n][i] * scale - scaled_base);
                added += scores[n][i];
            }
        }
        sum[m][half] = sum[m][half] * fade + added;
#pragma unroll
        for (int n = 0; n < wide; ++n) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) out[n][i] *= fade;
        }
    }

    // `factor` normalises the output; `put(i, lse)` takes the log-sum-exp of row i.
    template <typename Put>
    __device__ __forceinline__ void finish(float (&factor)[parts][2], float scale, Put put) {
#pragma unroll
        for (int m = 0; m < parts; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float total = sum_over_row(sum[m][half]);
                factor[m][half] = total > 0 ? 1 / total : 0;
                const float lse = total > 0 ? (top[m][half] * scale + log2f(total)) / log2_of_e : minus_infinity;
                if (lane() % 4 == 0) put(m * 16 + lane_row() + half * 8, lse);
            }
        }
    }
};

}  // namespace tile
