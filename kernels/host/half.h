// The two 16-bit float types of CUDA on the host, with conversions that round to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
    std::uint16_t bits;
};

struct __nv_bfloat16 {
    std::uint16_t bits;
};

namespace emulate {

inline std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline float widen_half(std::uint16_t bits) {
    const std::uint32_t sign = std::uint32_t(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x0400u) return float_of(sign | ((rest << 13) + (112u << 23)));
    // A subnormal counts steps of 2^-24.
    const float magnitude = float(rest) * 5.9604644775390625e-8f;
    return float_of(sign | bits_of(magnitude));
}

inline std::uint16_t round_half(float x) {
    const std::uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u;
    std::uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return std::uint16_t(sign | 0x7e00u);
    if (rest >= 0x47800000u) return std::uint16_t(sign | 0x7c00u);
    if (rest < 0x38800000u) {
        // Adding 0.5 lets the float adder round at the place of the smallest subnormal.
        return std::uint16_t(sign | (bits_of(float_of(rest) + 0.5f) - bits_of(0.5f)));
    }
    rest += 0xfffu + (rest >> 13 & 1u);
    return std::uint16_t(sign | (rest - (112u << 23)) >> 13);
}

inline std::uint16_t round_bfloat16(float x) {
    const std::uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return std::uint16_t(bits >> 16 | 0x40u);
    return std::uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// The products of one tile widen the same values many times.
inline float widen_half_cached(std::uint16_t bits) {
    struct Table {
        float values[65536];
        Table() {
            for (std::uint32_t i = 0; i < 65536; ++i) values[i] = widen_half(std::uint16_t(i));
        }
    };
    static const Table table;
    return table.values[bits];
}

}  // namespace emulate

inline float __half2float(__half x) { return emulate::widen_half(x.bits); }
inline __half __float2half_rn(float x) { return {emulate::round_half(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) { return emulate::float_of(std::uint32_t(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {emulate::round_bfloat16(x)}; }
