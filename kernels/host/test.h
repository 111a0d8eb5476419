// What the tests share: memory that shows stray accesses, random numbers, and how errors are judged.
#pragma once

#include <memory>

#include "../device.h"

namespace test {

// Device memory: starts as NaN, ends at a guard page, and what lies before it must stay as it was.
template <typename T>
class Memory {
  public:
    explicit Memory(std::size_t count) : count_(count), bytes_(emulate::guarded_bytes(count * sizeof(T))) {
        std::memset(bytes_ - before(), 0xff, before() + count * sizeof(T));
    }
    explicit Memory(const std::vector<T>& values) : Memory(values.size()) {
        if (count_) std::memcpy(bytes_, values.data(), count_ * sizeof(T));
    }
    Memory(const Memory&) = delete;
    ~Memory() {
        for (std::size_t i = 1; i <= before(); ++i) {
            if (bytes_[-std::ptrdiff_t(i)] != 0xff) emulate::fail("memory before a tensor was written");
        }
        emulate::free_guarded_bytes(bytes_, count_ * sizeof(T));
    }
    T* data() { return reinterpret_cast<T*>(bytes_); }
    std::size_t size() const { return count_; }
    std::vector<T> values() { return std::vector<T>(data(), data() + count_); }

  private:
    std::size_t before() const { return reinterpret_cast<std::uintptr_t>(bytes_) % 4096; }
    std::size_t count_;
    unsigned char* bytes_;
};

template <typename T>
constexpr const char* name_of = "f32";
template <>
inline constexpr const char* name_of<__half> = "f16";
template <>
inline constexpr const char* name_of<__nv_bfloat16> = "bf16";

template <typename T>
T rounded(double x) {
    T y;
    device::assign(y, float(x));
    return y;
}

using Values = std::vector<double>;

template <typename T>
std::vector<T> rounded(const Values& xs) {
    std::vector<T> ys(xs.size());
    for (std::size_t i = 0; i < xs.size(); ++i) ys[i] = rounded<T>(xs[i]);
    return ys;
}

template <typename T>
Values widened(const std::vector<T>& xs) {
    Values ys(xs.size());
    for (std::size_t i = 0; i < xs.size(); ++i) ys[i] = device::to_float(xs[i]);
    return ys;
}

// Normal numbers that T can represent, as doubles.
template <typename T>
Values random(std::size_t count, double size, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal(0, size);
    Values xs(count);
    for (double& x : xs) x = device::to_float(rounded<T>(normal(generator)));
    return xs;
}

// Frobenius norm of the difference over that of the truth; NaN where anything is.
inline double relative_error(const Values& xs, const Values& truth) {
    double error = 0, size = 0;
    for (std::size_t i = 0; i < truth.size(); ++i) {
        error += (xs[i] - truth[i]) * (xs[i] - truth[i]);
        size += truth[i] * truth[i];
    }
    return size > 0 ? std::sqrt(error / size) : std::sqrt(error);
}

struct Tally {
    int checks = 0, failures = 0;
    bool stop_at_failure = false;
    std::map<std::string, double> worst;  // by what was judged
};

inline Tally tally;

inline void report(bool passed, const std::string& what, double value, double limit) {
    ++tally.checks;
    if (passed) return;
    ++tally.failures;
    std::printf("FAILED %s: %.3g, at most %.3g\n", what.c_str(), value, limit);
    if (tally.stop_at_failure) {
        std::fflush(stdout);
        std::_Exit(1);
    }
}

inline void keep_worst(const std::string& kind, double value) {
    double& worst = tally.worst[kind];
    if (!(value <= worst)) worst = value;
}

inline void expect_below(const std::string& kind, const std::string& what, double value, double limit) {
    keep_worst(kind, value);
    report(value <= limit, kind + " " + what, value, limit);
}

// How far a result may be from the truth. In half precision: how many times as far as `half`, the truth with the
// rounding that cannot be avoided (the house's rule allows 2).
struct Limits {
    double f32, half;
};

template <typename T>
void expect_close(const std::string& kind, const std::string& what, const std::vector<T>& xs, const Values& truth,
                  Limits limits, const Values& half) {
    const double error = relative_error(widened(xs), truth);
    if constexpr (device::is_float<T>) {
        expect_below(kind + " f32, relative error", what, error, limits.f32);
    } else {
        const double ratio = error == 0 ? 0 : error / relative_error(half, truth);
        expect_below(kind + " " + name_of<T> + ", error / that of rounding", what, ratio, limits.half);
        keep_worst(kind + " " + name_of<T> + ", relative error", error);
    }
}

// Runs what follows in another order of warps, and with copies that arrive as early or as late as they may.
inline void schedule(unsigned number) {
    emulate::machine.schedule = {number / 2, number % 2 ? emulate::Copies::early : emulate::Copies::late};
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

void emulator();
void forward();
void backward();
void reference_gradients();
void decode();
void layer();
void similarity();

}  // namespace test
