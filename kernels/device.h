// The instructions that the kernels use, once for the device and once for the host's emulation. Everything else in the
// sources is the same text for both.
#pragma once

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>

#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define SHARED_ARRAY(type, name, count) __shared__ type name[count]
#define ENTRY(name, threads, shared)
#define PLANTED(number, wrong, right) (right)

namespace device {

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ std::size_t global_address(const void* p) { return __cvta_generic_to_global(p); }

__device__ __forceinline__ void load_matrices(unsigned (&words)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(unsigned (&words)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

#define MULTIPLY(type, name)                                                                                    \
    __device__ __forceinline__ void multiply(float (&c)[4], const unsigned* a, const unsigned* b, type) {       \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 {%0, %1, %2, %3}, "           \
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                            \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                           \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                       \
    }
MULTIPLY(__half, "f16")
MULTIPLY(__nv_bfloat16, "bf16")
#undef MULTIPLY

// 16 bytes to shared memory, of which the first `filled` come from `from` and the others are zero.
__device__ __forceinline__ void copy_16(void* to, const void* from, unsigned filled) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(global_address(from)), "r"(filled)
                 : "memory");
}

__device__ __forceinline__ void copy_4(void* to, const void* from, unsigned filled) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)),
                 "l"(global_address(from)), "r"(filled)
                 : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int pending>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

__device__ __forceinline__ unsigned pack(float low, float high, __half) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&both);
}

__device__ __forceinline__ unsigned pack(float low, float high, __nv_bfloat16) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&both);
}

// Two to the power of x, to about 2 ulp; subnormal results become 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

using Pair = uint2;
using Words = uint4;

__device__ __forceinline__ Pair load_8(const void* from) { return *static_cast<const Pair*>(from); }
__device__ __forceinline__ Words load_16(const void* from) { return *static_cast<const Words*>(from); }
// For what is read once: it need not stay in the cache.
__device__ __forceinline__ Words stream_16(const void* from) { return __ldcs(static_cast<const Words*>(from)); }
__device__ __forceinline__ void store_16(void* to, Words words) { *static_cast<Words*>(to) = words; }
__device__ __forceinline__ float as_float(unsigned bits) { return __uint_as_float(bits); }
__device__ __forceinline__ unsigned as_bits(float x) { return __float_as_uint(x); }

}  // namespace device

#else

#include "host/registry.h"

#define DYNAMIC_SHARED(name) unsigned char* name = emulate::machine.shared
#define SHARED_ARRAY(type, name, count)                                                \
    static const std::size_t name##_array = emulate::new_array(sizeof(type) * (count)); \
    type* name = reinterpret_cast<type*>(emulate::machine.arrays[name##_array].data())
#define ENTRY(name, threads, shared) static const emulate::Registration name##_entry(#name, name, threads, shared);

// A wrong form of an expression, for showing that the tests see it; the right one unless the build asks for bugs.
#if defined(PLANTED_BUGS)
extern int planted_bug;
#define PLANTED(number, wrong, right) (planted_bug == (number) ? (wrong) : (right))
#else
#define PLANTED(number, wrong, right) (right)
#endif

namespace device {

inline void load_matrices(unsigned (&words)[4], const void* row) { emulate::load_matrices<4, false>(words, row); }
inline void load_matrices_transposed(unsigned (&words)[4], const void* row) {
    emulate::load_matrices<4, true>(words, row);
}
template <typename T>
void multiply(float (&c)[4], const unsigned* a, const unsigned* b, T) {
    emulate::multiply<T>(c, a, b);
}
inline void copy_16(void* to, const void* from, unsigned filled) { emulate::copy_async(to, from, 16, filled); }
inline void copy_4(void* to, const void* from, unsigned filled) { emulate::copy_async(to, from, 4, filled); }
inline void commit_copies() { emulate::commit_copies(); }
template <int pending>
void wait_for_copies() {
    emulate::wait_for_copies(pending);
}
inline unsigned pack(float low, float high, __half) {
    return emulate::round_half(low) | unsigned(emulate::round_half(high)) << 16;
}
inline unsigned pack(float low, float high, __nv_bfloat16) {
    return emulate::round_bfloat16(low) | unsigned(emulate::round_bfloat16(high)) << 16;
}
inline float exp2_fast(float x) {
    const float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

struct Pair {
    unsigned x, y;
};

struct alignas(16) Words {
    unsigned x, y, z, w;
};

inline void check_aligned(const void* p, unsigned bytes) {
    if (reinterpret_cast<std::uintptr_t>(p) % bytes) emulate::fail("a wide access at a place that is not aligned");
}
inline Pair load_8(const void* from) {
    check_aligned(from, 8);
    Pair pair;
    std::memcpy(&pair, from, 8);
    return pair;
}
inline Words load_16(const void* from) {
    check_aligned(from, 16);
    Words words;
    std::memcpy(&words, from, 16);
    return words;
}
inline Words stream_16(const void* from) { return load_16(from); }
inline void store_16(void* to, Words words) {
    check_aligned(to, 16);
    std::memcpy(to, &words, 16);
}
inline float as_float(unsigned bits) { return emulate::float_of(bits); }
inline unsigned as_bits(float x) { return emulate::bits_of(x); }

}  // namespace device

#endif

namespace device {

constexpr unsigned all_lanes = 0xffffffffu;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void assign(float& to, float x) { to = x; }
__device__ __forceinline__ void assign(__half& to, float x) { to = __float2half_rn(x); }
__device__ __forceinline__ void assign(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

template <typename T>
constexpr bool is_float = false;
template <>
constexpr bool is_float<float> = true;

// Values in 16 bytes.
template <typename T>
constexpr int values_in_16 = 16 / int(sizeof(T));

// The low and the high half of a word.
__device__ __forceinline__ void unpack(unsigned word, float& low, float& high, __nv_bfloat16) {
    low = as_float(word << 16);
    high = as_float(word & 0xffff0000u);
}

__device__ __forceinline__ void unpack(unsigned word, float& low, float& high, __half) {
#if defined(__CUDACC__)
    const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&word));
    low = both.x;
    high = both.y;
#else
    low = emulate::widen_half(std::uint16_t(word));
    high = emulate::widen_half(std::uint16_t(word >> 16));
#endif
}

template <typename T>
__device__ __forceinline__ void unpack_16(const Words& words, float* values) {
    if constexpr (is_float<T>) {
        values[0] = as_float(words.x);
        values[1] = as_float(words.y);
        values[2] = as_float(words.z);
        values[3] = as_float(words.w);
    } else {
        unpack(words.x, values[0], values[1], T{});
        unpack(words.y, values[2], values[3], T{});
        unpack(words.z, values[4], values[5], T{});
        unpack(words.w, values[6], values[7], T{});
    }
}

template <typename T>
__device__ __forceinline__ Words pack_16(const float* values) {
    if constexpr (is_float<T>) {
        return {as_bits(values[0]), as_bits(values[1]), as_bits(values[2]), as_bits(values[3])};
    } else {
        return {pack(values[0], values[1], T{}), pack(values[2], values[3], T{}), pack(values[4], values[5], T{}),
                pack(values[6], values[7], T{})};
    }
}

// The sum over the lanes of a warp, in all of them.
__device__ __forceinline__ float sum_over_warp(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(all_lanes, x, step);
    return x;
}

// The largest of the lanes of a warp, in all of them.
__device__ __forceinline__ float max_over_warp(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(all_lanes, x, step));
    return x;
}

}  // namespace device
