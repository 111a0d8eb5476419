// The emulation itself: conversions, matrix loads and products, shuffles, copies.

#include "test.h"
#include "../tile.cuh"

extern "C" {
bool emulated_kernel(const char* name, unsigned* threads, std::size_t* shared);
bool emulated_launch(const char* name, unsigned blocks, std::size_t shared, void** arguments, const std::size_t* sizes,
                     std::size_t count);
}

namespace test {

namespace {

// Every half, and the places where rounding turns between neighbours, against the nearest of the two by distance.
template <typename T>
void conversions(int mantissa) {
    int wrong = 0;
    const auto value = [](unsigned bits) { return double(device::to_float(T{std::uint16_t(bits)})); };
    const unsigned infinity = (0x7fffu >> mantissa) << mantissa;
    for (unsigned bits = 0; bits < infinity; ++bits) {
        const T same = rounded<T>(value(bits));
        wrong += same.bits != bits;
        if (bits + 1 >= infinity) continue;
        const double middle = (value(bits) + value(bits + 1)) / 2;
        const unsigned even = bits % 2 ? bits + 1 : bits;
        wrong += rounded<T>(middle).bits != even;
        wrong += rounded<T>(std::nextafter(float(middle), 0.0f)).bits != bits;
        wrong += rounded<T>(std::nextafter(float(middle), INFINITY)).bits != bits + 1;
        wrong += rounded<T>(-middle).bits != (even | 0x8000u);
    }
    wrong += rounded<T>(INFINITY).bits != infinity;
    wrong += !std::isnan(device::to_float(rounded<T>(NAN)));
    wrong += !std::isinf(device::to_float(rounded<T>(3.4e38)));
    report(wrong == 0, std::string("conversions ") + name_of<T>, wrong, 0);
}

// The places of the products' elements, told by numbers that name their row and column.
template <typename T>
void products() {
    constexpr int width = 32;
    const Values a = random<T>(16 * width, 1, 1), b = random<T>(16 * width, 1, 2), c = random<T>(16 * width, 1, 3);
    Values by_rows(16 * 16), by_columns(16 * width), found(16 * 16), found_columns(16 * width);
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 16; ++j) {
            for (int k = 0; k < width; ++k) by_rows[i * 16 + j] += a[i * width + k] * b[j * width + k];
        }
    }
    for (int i = 0; i < 16; ++i) {
        for (int k = 0; k < width; ++k) {
            for (int j = 0; j < 16; ++j) {
                const double p = device::to_float(rounded<T>(by_rows[i * 16 + j]));
                by_columns[i * width + k] += p * c[j * width + k];
            }
        }
    }
    Memory<T> inputs(rounded<T>([&] {
        Values all = a;
        all.insert(all.end(), b.begin(), b.end());
        all.insert(all.end(), c.begin(), c.end());
        return all;
    }()));
    const int tile_bytes = tile::bytes<T, width>(16);
    emulate::launch("products", 1, 32, 3 * tile_bytes, [&] {
        DYNAMIC_SHARED(bytes);
        T* tiles[3];
        for (int i = 0; i < 3; ++i) {
            tiles[i] = reinterpret_cast<T*>(bytes + i * tile_bytes);
            tile::load<T, width, 16, 32>(tiles[i], inputs.data(),
                                         [&](int row) { return inputs.data() + (i * 16 + row) * width; });
        }
        device::commit_copies();
        device::wait_for_copies<0>();
        __syncthreads();
        float sums[1][2][4], out[1][width / 8][4];
        tile::clear(sums);
        tile::clear(out);
        tile::add_product_by_rows<T, width>(sums, tiles[0], tiles[1]);
        tile::add_product_by_columns(out, sums, tiles[2]);
        for (int i = 0; i < 4; ++i) {
            const int row = tile::lane_row() + i / 2 * 8, column = tile::lane_column() + i % 2;
            for (int n = 0; n < 2; ++n) found[row * 16 + n * 8 + column] = sums[0][n][i];
            for (int n = 0; n < width / 8; ++n) found_columns[row * width + n * 8 + column] = out[0][n][i];
        }
    });
    const std::string type = name_of<T>;
    expect_below("product by rows", type, relative_error(found, by_rows), 1e-6);
    // f32 sums may fall to the other side of a rounding.
    const double limit = device::is_float<T> ? 1e-6 : 1e-3;
    expect_below("product by columns", type, relative_error(found_columns, by_columns), limit);
}

void shuffles() {
    int wrong = 0;
    emulate::launch("shuffles", 1, 64, 16, [&] {
        const int lane = int(threadIdx.x % 32), self = int(threadIdx.x), first = self - lane;
        wrong += __shfl_xor_sync(~0u, self, 5) != first + (lane ^ 5);
        wrong += __shfl_sync(~0u, self, 3) != first + 3;
        wrong += __shfl_sync(~0u, self, 3, 8) != first + lane / 8 * 8 + 3;
        wrong += __shfl_down_sync(~0u, self, 4u) != (lane < 28 ? self + 4 : self);
        wrong += __shfl_up_sync(~0u, self, 4u) != (lane < 4 ? self : self - 4);
        if (lane < 16) wrong += __shfl_xor_sync(0xffffu, self, 8) != first + (lane ^ 8);
        __syncwarp();
        wrong += device::sum_over_warp(float(lane)) != 496;
    });
    report(wrong == 0, "shuffles", wrong, 0);
}

// Copies arrive when they are waited for, not before (or at once, if so asked), and shared memory starts as NaN.
void copies() {
    Memory<float> from(std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8});
    for (unsigned number = 0; number < 2; ++number) {
        schedule(number);
        int wrong = 0;
        emulate::launch("copies", 1, 32, 32, [&] {
            DYNAMIC_SHARED(bytes);
            float* to = reinterpret_cast<float*>(bytes);
            if (threadIdx.x) return;
            wrong += !std::isnan(to[0]);
            device::copy_16(to, from.data(), 16);
            device::commit_copies();
            device::copy_16(to + 4, from.data() + 4, 0);
            device::commit_copies();
            wrong += std::isnan(to[0]) != (number == 0);
            device::wait_for_copies<1>();
            wrong += to[3] != 4 || std::isnan(to[4]) != (number == 0);
            device::wait_for_copies<0>();
            wrong += to[4] != 0 || to[7] != 0;
        });
        report(wrong == 0, "copies", wrong, 0);
    }
}

// As another language calls a kernel: 3 rows of 2 heads of width 8.
void by_name() {
    Values x = random<float>(48, 1, 1), y = random<float>(48, 1, 2), truth(6);
    for (int i = 0; i < 48; ++i) truth[std::size_t(i / 8 % 2 * 3 + i / 16)] += x[i] * y[i];
    Memory<float> a(rounded<float>(x)), b(rounded<float>(y)), delta(6);
    const float *a_at = a.data(), *b_at = b.data();
    float* to = delta.data();
    int heads = 2, rows = 3, width = 8;
    void* arguments[] = {&a_at, &b_at, &to, &heads, &rows, &width};
    const std::size_t sizes[] = {8, 8, 8, 4, 4, 4};
    unsigned threads = 0;
    std::size_t shared = 1;
    const char* name = "attention_delta_f32";
    report(emulated_kernel(name, &threads, &shared) && threads == 256 && shared == 0, "kernel by name", threads, 256);
    report(!emulated_kernel("attention", &threads, &shared), "unknown kernel", 0, 0);
    report(!emulated_launch("attention", 1, 0, arguments, sizes, 6), "launch of an unknown kernel", 0, 0);
    report(!emulated_launch(name, 1, 0, arguments, sizes, 5), "launch with too few arguments", 0, 0);
    report(emulated_launch(name, 1, 0, arguments, sizes, 6), "launch by name", 0, 0);
    expect_below("launch by name", "delta", relative_error(widened(delta.values()), truth), 1e-6);
}

}  // namespace

void emulator() {
    by_name();
    conversions<__half>(10);
    conversions<__nv_bfloat16>(7);
    products<float>();
    products<__half>();
    products<__nv_bfloat16>();
    shuffles();
    copies();
}

}  // namespace test
