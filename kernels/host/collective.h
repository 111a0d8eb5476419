// What the lanes of a warp do together (shuffles, matrix products, matrix loads), and asynchronous copies. The places
// of matrix elements in lanes and registers are those of the PTX instruction set.
#pragma once

namespace emulate {

struct Exchange {
    std::uint32_t value;
    unsigned source;
    std::uint32_t result;
};

template <typename T>
T exchange(const char* instruction, unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) == 4, "shuffles move 4 bytes");
    Exchange operand{0, source, 0};
    std::memcpy(&operand.value, &value, 4);
    meet<Exchange>(instruction, mask, operand, [](Exchange* const* lanes, unsigned all) {
        for (unsigned lane = 0; lane < 32; ++lane) {
            if (!(all >> lane & 1)) continue;
            const unsigned from = lanes[lane]->source;
            if (from > 31 || !(all >> from & 1)) fail("a shuffle reads a lane that takes no part");
            lanes[lane]->result = lanes[from]->value;
        }
    });
    std::memcpy(&value, &operand.result, 4);
    return value;
}

}  // namespace emulate

inline void __syncwarp(unsigned mask = ~0u) {
    int nothing = 0;
    emulate::meet<int>("__syncwarp", mask, nothing, [](int* const*, unsigned) {});
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned lane = emulate::current->lane, segment = lane / width * width;
    return emulate::exchange("__shfl_sync", mask, value, segment + (unsigned(source) & unsigned(width - 1)));
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
    return emulate::exchange("__shfl_xor_sync", mask, value, emulate::current->lane ^ unsigned(bits));
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned step, int width = 32) {
    const unsigned lane = emulate::current->lane;
    const bool inside = lane % width + step < unsigned(width);
    return emulate::exchange("__shfl_down_sync", mask, value, inside ? lane + step : lane);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned step, int width = 32) {
    const unsigned lane = emulate::current->lane;
    return emulate::exchange("__shfl_up_sync", mask, value, lane % width >= step ? lane - step : lane);
}

namespace emulate {

inline float widen(std::uint16_t bits, __half) { return widen_half_cached(bits); }
inline float widen(std::uint16_t bits, __nv_bfloat16) { return float_of(std::uint32_t(bits) << 16); }

struct Product {
    float* c;
    const std::uint32_t *a, *b;
};

// Element `half` (0: low, 1: high) of a register.
inline std::uint16_t part(std::uint32_t word, int half) { return std::uint16_t(word >> 16 * half); }

// mma.sync.aligned.m16n8k16.row.col.f32: c (16, 8) += a (16, 16) b (16, 8).
template <typename T>
void multiply_warp(Product* const* lanes, unsigned) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int word = 0; word < 4; ++word) {
            for (int half = 0; half < 2; ++half) {
                a[group + word % 2 * 8][pair + word / 2 * 8 + half] = widen(part(lanes[lane]->a[word], half), T{});
            }
        }
        for (int word = 0; word < 2; ++word) {
            for (int half = 0; half < 2; ++half) {
                b[pair + word * 8 + half][group] = widen(part(lanes[lane]->b[word], half), T{});
            }
        }
    }
    float sums[16][8] = {};
    for (int row = 0; row < 16; ++row) {
        for (int k = 0; k < 16; ++k) {
            for (int column = 0; column < 8; ++column) sums[row][column] += a[row][k] * b[k][column];
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) lanes[lane]->c[i] += sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
}

struct MatrixLoad {
    const void* row;
    std::uint32_t* words;
};

// ldmatrix.sync.aligned.m8n8.x{count}: lane 8 i + r holds the address of row r of matrix i.
template <int count, bool transposed>
void load_warp(MatrixLoad* const* lanes, unsigned) {
    for (int matrix = 0; matrix < count; ++matrix) {
        std::uint16_t values[8][8];
        for (int row = 0; row < 8; ++row) {
            const void* from = lanes[matrix * 8 + row]->row;
            if (reinterpret_cast<std::uintptr_t>(from) % 16) fail("ldmatrix from a row that is not aligned");
            std::memcpy(values[row], from, 16);
        }
        for (int lane = 0; lane < 32; ++lane) {
            const int group = lane / 4, pair = lane % 4 * 2;
            const std::uint32_t low = transposed ? values[pair][group] : values[group][pair];
            const std::uint32_t high = transposed ? values[pair + 1][group] : values[group][pair + 1];
            lanes[lane]->words[matrix] = low | high << 16;
        }
    }
}

template <int count, bool transposed>
void load_matrices(std::uint32_t (&words)[count], const void* row) {
    MatrixLoad operand{row, words};
    const char* names[] = {"ldmatrix", "ldmatrix.trans"};
    meet<MatrixLoad>(names[transposed], ~0u, operand, load_warp<count, transposed>);
}

template <typename T>
void multiply(float (&c)[4], const std::uint32_t* a, const std::uint32_t* b) {
    Product operand{c, a, b};
    meet<Product>("mma", ~0u, operand, multiply_warp<T>);
}

inline void copy_async(void* to, const void* from, unsigned bytes, unsigned filled) {
    const auto at = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
    if (at(to) % bytes || (filled && at(from) % bytes)) fail("cp.async between places that are not aligned");
    const Copy copy{to, from, bytes, filled};
    if (machine.schedule.copies == Copies::early) finish(copy);
    current->copies.push_back(copy);
}

inline void commit_copies() { current->groups.push_back(current->copies.size()); }

// Waits until at most `pending` of the committed groups are under way.
inline void wait_for_copies(std::size_t pending) {
    Thread& thread = *current;
    if (thread.groups.size() <= pending) return;
    const std::size_t last = thread.groups.size() - pending - 1, end = thread.groups[last];
    if (machine.schedule.copies == Copies::late) {
        for (std::size_t i = 0; i < end; ++i) finish(thread.copies[i]);
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + std::ptrdiff_t(end));
    thread.groups.erase(thread.groups.begin(), thread.groups.begin() + std::ptrdiff_t(last) + 1);
    for (std::size_t& group : thread.groups) group -= end;
}

}  // namespace emulate
