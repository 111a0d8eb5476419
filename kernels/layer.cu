// The operations of a transformer layer around its products and its attention: RMS norm, rotary positions and SwiGLU, with
// their gradients. All are bound by memory: a value is read once and written once, but for a row of a norm, whose second
// reading finds it in the cache. Half types are widened, computed in f32 and rounded where the composed form rounds.

#include "device.h"

namespace layer {

using namespace device;

constexpr int threads = 256, warps = 8;
constexpr int rows_per_partial = 64;

template <typename T>
__device__ __forceinline__ float rounded(float x) {
    T y;
    assign(y, x);
    return to_float(y);
}

template <typename T>
__device__ __forceinline__ void read(const T* from, float (&to)[values_in_16<T>]) {
    unpack_16<T>(load_16(from), to);
}

// One over the root of the mean square of a row; a warp for each.
template <typename T>
__device__ __forceinline__ float scale_of(const T* row, int width, float eps) {
    float sum = 0;
    for (int at = threadIdx.x % 32 * values_in_16<T>; at < width; at += 32 * values_in_16<T>) {
        float x[values_in_16<T>];
        read(row + at, x);
#pragma unroll
        for (int i = 0; i < values_in_16<T>; ++i) sum += x[i] * x[i];
    }
    return 1 / sqrtf(sum_over_warp(sum) / width + eps);
}

template <typename T>
__device__ __forceinline__ void rms_norm(const T* xs, const T* weight, T* out, float* scales, int rows, int width,
                                         float eps) {
    const int row = blockIdx.x * warps + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const std::size_t start = std::size_t(row) * width;
    const float scale = scale_of(xs + start, width, eps);
    if (lane == 0) scales[row] = scale;
    for (int at = lane * values_in_16<T>; at < width; at += 32 * values_in_16<T>) {
        float x[values_in_16<T>], w[values_in_16<T>];
        read(xs + start + at, x);
        read(weight + at, w);
#pragma unroll
        for (int i = 0; i < values_in_16<T>; ++i) x[i] = rounded<T>(x[i] * scale) * w[i];
        store_16(out + start + at, pack_16<T>(x));
    }
}

// dx = scale g w - x scale^3 mean(g w x).
template <typename T>
__device__ __forceinline__ void rms_norm_backward(const T* xs, const T* weight, const T* grad, const float* scales,
                                                  T* dx, int rows, int width) {
    const int row = blockIdx.x * warps + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const std::size_t start = std::size_t(row) * width;
    float x[values_in_16<T>], w[values_in_16<T>], g[values_in_16<T>], sum = 0;
    for (int at = lane * values_in_16<T>; at < width; at += 32 * values_in_16<T>) {
        read(xs + start + at, x);
        read(weight + at, w);
        read(grad + start + at, g);
#pragma unroll
        for (int i = 0; i < values_in_16<T>; ++i) sum += g[i] * w[i] * x[i];
    }
    const float scale = scales[row];
    const float along = sum_over_warp(sum) * PLANTED(11, scale * scale, scale * scale * scale) / width;
    for (int at = lane * values_in_16<T>; at < width; at += 32 * values_in_16<T>) {
        read(xs + start + at, x);
        read(weight + at, w);
        read(grad + start + at, g);
#pragma unroll
        for (int i = 0; i < values_in_16<T>; ++i) x[i] = scale * g[i] * w[i] - along * x[i];
        store_16(dx + start + at, pack_16<T>(x));
    }
}

// The weight's gradient over 64 rows, a thread per column; `partial` (ceil(rows / 64), width).
template <typename T>
__device__ __forceinline__ void rms_norm_weight(const T* xs, const T* grad, const float* scales, float* partial,
                                                int rows, int width) {
    const int blocks = (width + threads - 1) / threads;
    const int column = blockIdx.x % blocks * threads + threadIdx.x, part = blockIdx.x / blocks;
    if (column >= width) return;
    const int first = part * rows_per_partial, end = min(rows, first + PLANTED(12, 63, rows_per_partial));
    float sum = 0;
    for (int row = first; row < end; ++row) {
        const std::size_t at = std::size_t(row) * width + column;
        sum += to_float(grad[at]) * rounded<T>(to_float(xs[at]) * scales[row]);
    }
    partial[std::size_t(part) * width + column] = sum;
}

template <typename T>
__device__ __forceinline__ void rms_norm_weight_sum(const float* partial, T* dw, int parts, int width) {
    const int column = blockIdx.x * threads + threadIdx.x;
    if (column >= width) return;
    float sum = 0;
    for (int part = 0; part < parts; ++part) sum += partial[std::size_t(part) * width + column];
    assign(dw[column], sum);
}

// x (rows, heads, 2 half) turned by the angles of its row, (rows, half) f32; backwards with `direction` -1. A thread turns
// 16 bytes of either half.
template <typename T>
__device__ __forceinline__ void rope(const T* xs, const float* cos, const float* sin, T* out, int rows, int heads,
                                     int half, float direction) {
    const int pieces = half / values_in_16<T>;
    const std::size_t index = std::size_t(blockIdx.x) * threads + threadIdx.x, head = index / pieces;
    if (head >= std::size_t(rows) * heads) return;
    const int piece = int(index % pieces) * values_in_16<T>;
    const std::size_t left = head * 2 * half + piece, right = left + half, angle = head / heads * half + piece;
    float a[values_in_16<T>], b[values_in_16<T>], c[values_in_16<T>], s[values_in_16<T>];
    read(xs + left, a);
    read(xs + right, b);
#pragma unroll
    for (int i = 0; i < values_in_16<T>; i += 4) {
        unpack_16<float>(load_16(cos + angle + i), c + i);
        unpack_16<float>(load_16(sin + angle + i), s + i);
    }
#pragma unroll
    for (int i = 0; i < values_in_16<T>; ++i) {
        const float turn = PLANTED(13, s[i], direction * s[i]), x = a[i];
        a[i] = x * c[i] - b[i] * turn;
        b[i] = b[i] * c[i] + x * turn;
    }
    store_16(out + left, pack_16<T>(a));
    store_16(out + right, pack_16<T>(b));
}

__device__ __forceinline__ float sigmoid(float x) { return 1 / (1 + exp2_fast(-1.44269504f * x)); }

// silu(gate) up, in pieces of 16 bytes.
template <typename T>
__device__ __forceinline__ void swiglu(const T* gate, const T* up, T* out, int pieces) {
    const int piece = blockIdx.x * threads + threadIdx.x;
    if (piece >= pieces) return;
    const std::size_t at = std::size_t(piece) * values_in_16<T>;
    float g[values_in_16<T>], u[values_in_16<T>];
    read(gate + at, g);
    read(up + at, u);
#pragma unroll
    for (int i = 0; i < values_in_16<T>; ++i) u[i] *= rounded<T>(g[i] * sigmoid(g[i]));
    store_16(out + at, pack_16<T>(u));
}

template <typename T>
__device__ __forceinline__ void swiglu_backward(const T* gate, const T* up, const T* grad, T* dgate, T* dup,
                                                int pieces) {
    const int piece = blockIdx.x * threads + threadIdx.x;
    if (piece >= pieces) return;
    const std::size_t at = std::size_t(piece) * values_in_16<T>;
    float g[values_in_16<T>], u[values_in_16<T>], d[values_in_16<T>];
    read(gate + at, g);
    read(up + at, u);
    read(grad + at, d);
#pragma unroll
    for (int i = 0; i < values_in_16<T>; ++i) {
        const float s = sigmoid(g[i]), silu = g[i] * s;
        g[i] = d[i] * u[i] * (s + silu * (1 - s));
        u[i] = d[i] * silu;
    }
    store_16(dgate + at, pack_16<T>(g));
    store_16(dup + at, pack_16<T>(u));
}

}  // namespace layer

#define KERNEL(name, parameters, call)                                                       \
    extern "C" __global__ void __launch_bounds__(layer::threads) name parameters { call; }   \
    ENTRY(name, layer::threads, 0)

#define KERNELS(type, T)                                                                                               \
    KERNEL(layer_rms_norm_##type,                                                                                      \
           (const T* xs, const T* weight, T* out, float* scales, int rows, int width, float eps),                      \
           layer::rms_norm(xs, weight, out, scales, rows, width, eps))                                                 \
    KERNEL(layer_rms_norm_backward_##type,                                                                             \
           (const T* xs, const T* weight, const T* grad, const float* scales, T* dx, int rows, int width),             \
           layer::rms_norm_backward(xs, weight, grad, scales, dx, rows, width))                                        \
    KERNEL(layer_rms_norm_weight_##type,                                                                               \
           (const T* xs, const T* grad, const float* scales, float* partial, int rows, int width),                     \
           layer::rms_norm_weight(xs, grad, scales, partial, rows, width))                                             \
    KERNEL(layer_rms_norm_weight_sum_##type, (const float* partial, T* dw, int parts, int width),                      \
           layer::rms_norm_weight_sum(partial, dw, parts, width))                                                      \
    KERNEL(layer_rope_##type,                                                                                          \
           (const T* xs, const float* cos, const float* sin, T* out, int rows, int heads, int half, float direction),  \
           layer::rope(xs, cos, sin, out, rows, heads, half, direction))                                               \
    KERNEL(layer_swiglu_##type, (const T* gate, const T* up, T* out, int pieces),                                      \
           layer::swiglu(gate, up, out, pieces))                                                                       \
    KERNEL(layer_swiglu_backward_##type,                                                                               \
           (const T* gate, const T* up, const T* grad, T* dgate, T* dup, int pieces),                                  \
           layer::swiglu_backward(gate, up, grad, dgate, dup, pieces))

KERNELS(f32, float)
KERNELS(bf16, __nv_bfloat16)
KERNELS(f16, __half)
