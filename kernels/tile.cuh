// Tiles in shared memory, and the products of tiles that a warp computes.
//
// A product's sums are held as the m16n8k16 instruction leaves them: lane 4 g + t has, of every 16 x 8 part, the
// elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1). The f32 forms keep the same places, so that kernels are
// written once for all types.
#pragma once

#include "device.h"

namespace tile {

using namespace device;

// Elements from one row of a tile to the next. The 16 bytes more than the width put eight rows into different banks.
template <typename T, int width>
constexpr int stride = width + values_in_16<T>;

template <typename T, int width>
constexpr int bytes(int rows) {
    return rows * stride<T, width> * int(sizeof(T));
}

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }
// Row of a lane in the upper half of a 16 x 8 part, and its first column.
__device__ __forceinline__ int lane_row() { return lane() / 4; }
__device__ __forceinline__ int lane_column() { return lane() % 4 * 2; }

template <int parts, int columns>
__device__ __forceinline__ void clear(float (&sums)[parts][columns][4]) {
#pragma unroll
    for (int m = 0; m < parts; ++m) {
#pragma unroll
        for (int n = 0; n < columns; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;
        }
    }
}

// Starts copying `rows` rows of `width` to a tile. `row(i)` is where row i begins, or null for a row of zeros;
// `base` is any address that may be read.
template <typename T, int width, int rows, int threads, typename Row>
__device__ __forceinline__ void load(T* to, const T* base, Row row) {
    constexpr int pieces = width / values_in_16<T>;
    static_assert(width % values_in_16<T> == 0, "rows are copied 16 bytes at a time");
    for (int i = threadIdx.x; i < rows * pieces; i += threads) {
        const int at = i / pieces, column = i % pieces * values_in_16<T>;
        const T* from = row(at);
        copy_16(to + at * stride<T, width> + column, from ? from + column : base, from ? 16 : 0);
    }
}

// sums += a b^T for 16 `parts` rows of a and 8 `columns` rows of b, both tiles of `width`.
template <typename T, int width, int parts, int columns>
__device__ __forceinline__ void add_product_by_rows(float (&sums)[parts][columns][4], const T* a, const T* b) {
    constexpr int step = stride<T, width>;
    if constexpr (is_float<T>) {
#pragma unroll 2
        for (int k = 0; k < width; k += 4) {
            float left[parts][2][4];
#pragma unroll
            for (int m = 0; m < parts; ++m) {
                unpack_16<T>(load_16(a + (m * 16 + lane_row()) * step + k), left[m][0]);
                unpack_16<T>(load_16(a + (m * 16 + lane_row() + 8) * step + k), left[m][1]);
            }
#pragma unroll
            for (int n = 0; n < columns; ++n) {
                float right[2][4];
                unpack_16<T>(load_16(b + (n * 8 + lane_column()) * step + k), right[0]);
                unpack_16<T>(load_16(b + (n * 8 + lane_column() + 1) * step + k), right[1]);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
#pragma unroll
                    for (int m = 0; m < parts; ++m) {
                        sums[m][n][0] += left[m][0][i] * right[0][i];
                        sums[m][n][1] += left[m][0][i] * right[1][i];
                        sums[m][n][2] += left[m][1][i] * right[0][i];
                        sums[m][n][3] += left[m][1][i] * right[1][i];
                    }
                }
            }
        }
    } else {
        static_assert(columns % 2 == 0, "matrices of b are loaded in pairs");
        const T* a_row = a + lane() % 16 * step + lane() / 16 * 8;
        const T* b_row = b + (lane() / 16 * 8 + lane() % 8) * step + lane() / 8 % 2 * 8;
#pragma unroll
        for (int k = 0; k < width; k += 16) {
            unsigned left[parts][4];
#pragma unroll
            for (int m = 0; m < parts; ++m) load_matrices(left[m], a_row + m * 16 * step + k);
#pragma unroll
            for (int n = 0; n < columns; n += 2) {
                unsigned right[4];
                load_matrices(right, b_row + n * 8 * step + k);
#pragma unroll
                for (int m = 0; m < parts; ++m) {
                    multiply(sums[m][n], left[m], right, T{});
                    multiply(sums[m][n + 1], left[m], PLANTED(1, right, right + 2), T{});
                }
            }
        }
    }
}

// sums += p b for p (16 `parts`, 8 `keys`) held as sums are, and a tile b of 8 `keys` rows of 8 `columns`.
// In half precision p is rounded to T.
template <typename T, int parts, int keys, int columns>
__device__ __forceinline__ void add_product_by_columns(float (&sums)[parts][columns][4],
                                                       const float (&p)[parts][keys][4], const T* b) {
    constexpr int step = stride<T, columns * 8>;
    if constexpr (is_float<T>) {
#pragma unroll
        for (int k = 0; k < keys; ++k) {
            // The lanes of a row hold its columns 8 k .. 8 k + 7, two each.
            for (int holder = 0; holder < 4; ++holder) {
                const int from = lane() / 4 * 4 + holder;
#pragma unroll
                for (int low = 0; low < 2; ++low) {
                    const T* row = b + (k * 8 + holder * 2 + low) * step + lane_column();
#pragma unroll
                    for (int m = 0; m < parts; ++m) {
                        const float upper = __shfl_sync(all_lanes, p[m][k][low], from);
                        const float lower = __shfl_sync(all_lanes, p[m][k][low + 2], from);
#pragma unroll
                        for (int n = 0; n < columns; ++n) {
                            const float right[2] = {row[n * 8], row[n * 8 + 1]};
                            sums[m][n][0] += upper * right[0];
                            sums[m][n][1] += upper * right[1];
                            sums[m][n][2] += lower * right[0];
                            sums[m][n][3] += lower * right[1];
                        }
                    }
                }
            }
        }
    } else {
        static_assert(keys % 2 == 0 && columns % 2 == 0, "matrices are 8 x 8, loaded four at a time");
        const T* b_row = b + lane() % 16 * step + lane() / 16 * 8;
#pragma unroll
        for (int k = 0; k < keys; k += 2) {
            unsigned left[parts][4];
#pragma unroll
            for (int m = 0; m < parts; ++m) {
                // The sums of two neighbouring 16 x 8 parts are the left operand of the next product as they are.
                left[m][0] = pack(p[m][k][0], p[m][k][1], T{});
                left[m][1] = pack(p[m][k][2], p[m][k][3], T{});
                left[m][2] = pack(p[m][k + 1][0], p[m][k + 1][1], T{});
                left[m][3] = pack(p[m][k + 1][2], p[m][k + 1][3], T{});
            }
#pragma unroll
            for (int n = 0; n < columns; n += 2) {
                unsigned right[4];
                load_matrices_transposed(right, b_row + k * 8 * step + n * 8);
#pragma unroll
                for (int m = 0; m < parts; ++m) {
                    multiply(sums[m][n], left[m], right, T{});
                    multiply(sums[m][n + 1], left[m], right + 2, T{});
                }
            }
        }
    }
}

// Writes a warp's sums times `factor` (one per row of a lane) to global memory, by way of 16 `parts` rows of a tile
// that belong to this warp alone: so the stores are 16 bytes wide. `row(i)` is where row i goes, or null for nowhere.
template <typename T, int parts, int columns, typename Row>
__device__ __forceinline__ void store(const float (&sums)[parts][columns][4], const float (&factor)[parts][2],
                                      T* stage, Row row) {
    constexpr int step = stride<T, columns * 8>, pieces = columns * 8 / values_in_16<T>;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < parts; ++m) {
#pragma unroll
        for (int n = 0; n < columns; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = m * 16 + lane_row() + i / 2 * 8;
                assign(stage[at * step + n * 8 + lane_column() + i % 2], sums[m][n][i] * factor[m][i / 2]);
            }
        }
    }
    __syncwarp();
    for (int i = lane(); i < parts * 16 * pieces; i += 32) {
        const int at = i / pieces, column = i % pieces * values_in_16<T>;
        T* to = row(at);
        if (to) store_16(to + column, load_16(stage + at * step + column));
    }
}

}  // namespace tile
