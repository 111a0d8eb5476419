// RMS norm, rotary positions and SwiGLU, and their gradients.

#include "test.h"

namespace test {

namespace {

constexpr Limits limits{2e-6, 1.1};

template <typename T>
std::string named(const std::string& kernel) {
    return "layer_" + kernel + "_" + name_of<T>;
}

// Values that T can hold, where the kernel rounds; exact for a bare f64 truth.
template <typename T>
double round_to(double x, bool exact) {
    return exact ? x : double(device::to_float(rounded<T>(x)));
}

struct Norm {
    Values out, dx, dw;
};

// With `exact` in f64; otherwise rounded to T where a half-precision form rounds.
template <typename T>
Norm norm_of(const Values& x, const Values& w, const Values& grad, int rows, int width, bool exact) {
    Norm all{Values(x.size()), Values(x.size()), Values(w.size())};
    for (int row = 0; row < rows; ++row) {
        const std::size_t start = std::size_t(row) * width;
        double squares = 0, along = 0;
        for (int i = 0; i < width; ++i) squares += x[start + i] * x[start + i];
        const double scale = 1 / std::sqrt(squares / width + 1e-6);
        for (int i = 0; i < width; ++i) along += grad[start + i] * w[i] * x[start + i];
        for (int i = 0; i < width; ++i) {
            const std::size_t at = start + i;
            const double normal = round_to<T>(x[at] * scale, exact);
            all.out[at] = round_to<T>(normal * w[i], exact);
            all.dx[at] = round_to<T>(scale * grad[at] * w[i] - x[at] * scale * scale * scale * along / width, exact);
            all.dw[i] += grad[at] * normal;
        }
    }
    for (double& x : all.dw) x = round_to<T>(x, exact);
    return all;
}

template <typename T>
void norm(int rows, int width, double size, unsigned seed) {
    const std::size_t count = std::size_t(rows) * width;
    const Values x = random<T>(count, size, seed), w = random<T>(width, 1, seed + 1), g = random<T>(count, 1, seed + 2);
    Memory<T> xs(rounded<T>(x)), weight(rounded<T>(w)), grad(rounded<T>(g)), out(count), dx(count), dw(width);
    const int parts = (rows + 63) / 64, columns = (width + 255) / 256;
    Memory<float> scales(rows), partial(std::size_t(parts) * width);
    const unsigned blocks = (rows + 7) / 8;
    emulate::launch_named(named<T>("rms_norm"), blocks, 0, xs.data(), weight.data(), out.data(), scales.data(), rows,
                          width, 1e-6f);
    emulate::launch_named(named<T>("rms_norm_backward"), blocks, 0, xs.data(), weight.data(), grad.data(),
                          scales.data(), dx.data(), rows, width);
    emulate::launch_named(named<T>("rms_norm_weight"), unsigned(parts * columns), 0, xs.data(), grad.data(),
                          scales.data(), partial.data(), rows, width);
    emulate::launch_named(named<T>("rms_norm_weight_sum"), unsigned(columns), 0, partial.data(), dw.data(), parts,
                          width);
    const Norm truth = norm_of<T>(x, w, g, rows, width, true), half = norm_of<T>(x, w, g, rows, width, false);
    const std::string what = std::to_string(rows) + " x " + std::to_string(width);
    expect_close("rms norm", what, out.values(), truth.out, limits, half.out);
    expect_close("rms norm, dx", what, dx.values(), truth.dx, limits, half.dx);
    expect_close("rms norm, dw", what, dw.values(), truth.dw, limits, half.dw);
}

template <typename T>
void turned(int rows, int heads, int width, float direction, unsigned seed) {
    const int half = width / 2;
    const std::size_t count = std::size_t(rows) * heads * width;
    const Values x = random<T>(count, 1, seed), angles = random<float>(std::size_t(rows) * half, 3, seed + 1);
    std::vector<float> cosines, sines;
    for (double angle : angles) {
        cosines.push_back(std::cos(float(angle)));
        sines.push_back(std::sin(float(angle)));
    }
    Memory<T> xs(rounded<T>(x)), out(count);
    Memory<float> cos(cosines), sin(sines);
    const unsigned pieces = unsigned(std::size_t(rows) * heads * half / device::values_in_16<T>);
    emulate::launch_named(named<T>("rope"), (pieces + 255) / 256, 0, xs.data(), cos.data(), sin.data(), out.data(),
                          rows, heads, half, direction);
    Values truth(count), rounded_truth(count);
    for (std::size_t head = 0; head < std::size_t(rows) * heads; ++head) {
        for (int i = 0; i < half; ++i) {
            const std::size_t a = head * width + i, b = a + half, angle = head / heads * half + i;
            const double c = cosines[angle], s = direction * sines[angle];
            truth[a] = x[a] * c - x[b] * s;
            truth[b] = x[b] * c + x[a] * s;
        }
    }
    for (std::size_t i = 0; i < count; ++i) rounded_truth[i] = round_to<T>(truth[i], false);
    const std::string what = std::to_string(rows) + " x " + std::to_string(heads) + " x " + std::to_string(width);
    expect_close("rope", what, out.values(), truth, limits, rounded_truth);
}

template <typename T>
void gated(int count, double size, unsigned seed) {
    const Values g = random<T>(count, size, seed), u = random<T>(count, 1, seed + 1), d = random<T>(count, 1, seed + 2);
    Memory<T> gate(rounded<T>(g)), up(rounded<T>(u)), grad(rounded<T>(d)), out(count), dgate(count), dup(count);
    const int pieces = count / device::values_in_16<T>;
    const unsigned blocks = (pieces + 255) / 256;
    emulate::launch_named(named<T>("swiglu"), blocks, 0, gate.data(), up.data(), out.data(), pieces);
    emulate::launch_named(named<T>("swiglu_backward"), blocks, 0, gate.data(), up.data(), grad.data(), dgate.data(),
                          dup.data(), pieces);
    Values truth[3], half[3];
    for (int i = 0; i < count; ++i) {
        const double s = 1 / (1 + std::exp(-g[i])), silu = g[i] * s;
        const double exact[3] = {silu * u[i], d[i] * u[i] * (s + silu * (1 - s)), d[i] * silu};
        for (int j = 0; j < 3; ++j) {
            truth[j].push_back(exact[j]);
            half[j].push_back(round_to<T>(j == 0 ? round_to<T>(silu, false) * u[i] : exact[j], false));
        }
    }
    const std::string what = std::to_string(count);
    expect_close("swiglu", what, out.values(), truth[0], limits, half[0]);
    expect_close("swiglu, gradient of the gate", what, dgate.values(), truth[1], limits, half[1]);
    expect_close("swiglu, gradient of the other", what, dup.values(), truth[2], limits, half[2]);
}

template <typename T>
void all() {
    unsigned number = 0;
    for (const auto& [rows, width, size] :
         {std::tuple{1, 8, 1.0}, {9, 3584, 1.0}, {130, 40, 0.01}, {64, 264, 30.0}, {129, 512, 1.0}}) {
        schedule(number);
        norm<T>(rows, width, size, ++number);
    }
    for (const auto& [rows, heads, width] : {std::tuple{1, 1, 16}, {33, 4, 64}, {70, 3, 80}, {5, 28, 128}}) {
        schedule(number);
        turned<T>(rows, heads, width, 1, ++number);
        turned<T>(rows, heads, width, -1, ++number);
    }
    for (const auto& [count, size] : {std::tuple{8, 1.0}, {4096, 1.0}, {9768, 20.0}}) {
        schedule(number);
        gated<T>(count, size, ++number);
    }
    schedule(0);
}

}  // namespace

void layer() {
    all<float>();
    all<__nv_bfloat16>();
    all<__half>();
}

}  // namespace test
