// Attention forward and backward on ragged inputs.

#include "reference.h"
#include "test.h"

namespace test {

namespace {

using reference::Problem;

struct Case {
    const char* name;
    Problem problem;
    double size;  // of queries and keys

    std::string kind(const char* name) const { return size > 1 ? std::string("large logits, ") + name : name; }
};

Problem problem(std::vector<int> q_lens, std::vector<int> k_lens, std::vector<int> prefixes, int heads, int kv_heads,
                int width, bool causal) {
    Problem p;
    p.q_lens = std::move(q_lens);
    p.k_lens = std::move(k_lens);
    p.prefixes = std::move(prefixes);
    p.heads = heads;
    p.kv_heads = kv_heads;
    p.width = width;
    p.causal = causal;
    p.scale = 1 / std::sqrt(double(width));
    return p;
}

// Self-attention of ragged segments, cross lengths with queries that see nothing, prefixes, windows, large logits.
std::vector<Case> cases(int width) {
    const std::vector<int> ragged{0, 1, 65, 0, 17, 131, 64}, queries{3, 1, 70, 5, 0, 40, 66};
    const std::vector<int> keys{67, 130, 70, 0, 9, 2, 65}, family{33, 10, 70, 5, 0, 20};
    const std::vector<int> windows{16, 4, 64, 63, 1, 8};
    const std::vector<int> prefixes{-1, 0, 0, -1, 3, 3};
    std::vector<Case> all{
        {"ragged causal", problem(ragged, ragged, {}, 4, 2, width, true), 1},
        {"ragged full", problem(ragged, ragged, {}, 2, 2, width, false), 1},
        {"offsets causal", problem(queries, keys, {}, 3, 1, width, true), 1},
        {"offsets full", problem(queries, keys, {}, 2, 1, width, false), 1},
        {"prefixes causal", problem(family, family, prefixes, 4, 2, width, true), 1},
        {"prefixes full", problem(family, family, prefixes, 2, 1, width, false), 1},
        {"windows", problem(windows, windows, {}, 2, 2, width, false), 1},
        {"one row", problem({1}, {1}, {}, 7, 1, width, true), 1},
        // Scores of up to about 400: exp overflows beyond 88.
        {"large logits", problem({90}, {150}, {}, 2, 1, width, true), 10},
    };
    return all;
}

template <typename T>
struct Inputs {
    Values q, k, v, grad;

    Inputs(const Problem& p, double size, unsigned seed) {
        const std::size_t rows = std::size_t(p.rows()) * p.heads * p.width;
        const std::size_t keys = std::size_t(p.key_rows()) * p.kv_heads * p.width;
        q = random<T>(rows, size, seed);
        k = random<T>(keys, size, seed + 1);
        v = random<T>(keys, 1, seed + 2);
        grad = random<T>(rows, 1, seed + 3);
    }
};

// (segment, tile) of all tiles of `rows` rows, in an order that must not matter.
std::vector<int> tiles(const std::vector<int>& lens, int rows, unsigned seed) {
    std::vector<std::pair<int, int>> all;
    for (std::size_t s = 0; s < lens.size(); ++s) {
        for (int t = 0; t * rows < lens[s]; ++t) all.emplace_back(int(s), t);
    }
    std::mt19937 generator(seed);
    std::shuffle(all.begin(), all.end(), generator);
    std::vector<int> flat;
    for (const auto& [segment, tile] : all) flat.insert(flat.end(), {segment, tile});
    return flat;
}

std::size_t shared_of(const std::string& name) { return emulate::kernels().at(name).shared; }

template <typename T>
struct Output {
    std::vector<T> out;
    std::vector<float> lse;
};

template <typename T>
Output<T> run_forward(const Problem& p, const Inputs<T>& in, int rows) {
    Memory<T> q(rounded<T>(in.q)), k(rounded<T>(in.k)), v(rounded<T>(in.v)), out(in.q.size());
    Memory<float> lse(std::size_t(p.heads) * p.rows());
    Memory<int> cu_q(Problem::offsets(p.q_lens)), cu_k(Problem::offsets(p.k_lens)), prefixes(p.prefixes);
    Memory<int> at(tiles(p.q_lens, rows, 5));
    const int* prefix = p.prefixes.empty() ? nullptr : prefixes.data();
    const std::string name = std::string("attention_forward_") + name_of<T> + "_" + std::to_string(p.width) + "_" +
                             std::to_string(rows);
    emulate::launch_named(name, unsigned(at.size() / 2) * p.heads, shared_of(name), (const T*)q.data(),
                          (const T*)k.data(), (const T*)v.data(), out.data(), lse.data(), (const int*)cu_q.data(),
                          (const int*)cu_k.data(), prefix, (const int*)at.data(), p.heads, p.kv_heads, p.rows(),
                          int(p.causal), float(p.scale));
    return {out.values(), lse.values()};
}

template <typename T>
struct Gradients {
    std::vector<T> dq, dk, dv;
};

// From the forward's own output, as in training.
template <typename T>
Gradients<T> run_backward(const Problem& p, const Inputs<T>& in, const Output<T>& forward) {
    Memory<T> q(rounded<T>(in.q)), k(rounded<T>(in.k)), v(rounded<T>(in.v)), grad(rounded<T>(in.grad));
    Memory<T> out(forward.out), dq(in.q.size()), dk(in.k.size()), dv(in.v.size());
    Memory<float> lse(forward.lse), delta(forward.lse.size());
    Memory<int> cu_q(Problem::offsets(p.q_lens)), cu_k(Problem::offsets(p.k_lens)), prefixes(p.prefixes);
    Memory<int> q_tiles(tiles(p.q_lens, 64, 6)), k_tiles(tiles(p.k_lens, 64, 7));
    const int* prefix = p.prefixes.empty() ? nullptr : prefixes.data();
    const std::string type = name_of<T>, end = type + "_" + std::to_string(p.width);
    emulate::launch_named("attention_delta_" + type, unsigned(p.rows() * p.heads + 7) / 8, 0, (const T*)out.data(),
                          (const T*)grad.data(), delta.data(), p.heads, p.rows(), p.width);
    const std::string of_q = "attention_backward_q_" + end, of_kv = "attention_backward_kv_" + end;
    emulate::launch_named(of_q, unsigned(q_tiles.size() / 2) * p.heads, shared_of(of_q), (const T*)q.data(),
                          (const T*)k.data(), (const T*)v.data(), (const T*)grad.data(), (const float*)lse.data(),
                          (const float*)delta.data(), dq.data(), (const int*)cu_q.data(), (const int*)cu_k.data(),
                          prefix, (const int*)q_tiles.data(), p.heads, p.kv_heads, p.rows(), int(p.causal),
                          float(p.scale));
    emulate::launch_named(of_kv, unsigned(k_tiles.size() / 2) * p.kv_heads, shared_of(of_kv), (const T*)q.data(),
                          (const T*)k.data(), (const T*)v.data(), (const T*)grad.data(), (const float*)lse.data(),
                          (const float*)delta.data(), dk.data(), dv.data(), (const int*)cu_q.data(),
                          (const int*)cu_k.data(), prefix, (const int*)k_tiles.data(), p.heads, p.kv_heads, p.rows(),
                          int(p.q_lens.size()), int(p.causal), float(p.scale));
    return {dq.values(), dk.values(), dv.values()};
}

double lse_error(const std::vector<float>& found, const Values& truth) {
    double worst = 0;
    for (std::size_t i = 0; i < truth.size(); ++i) {
        if (std::isinf(truth[i]) && found[i] == truth[i]) continue;
        const double error = std::abs(found[i] - truth[i]) / std::max(1.0, std::abs(truth[i]));
        if (!(error <= worst)) worst = error;
    }
    return worst;
}

template <typename T>
std::string label(const Case& c, int rows) {
    return std::string(c.name) + ", " + name_of<T> + ", width " + std::to_string(c.problem.width) + ", tile " +
           std::to_string(rows);
}

template <typename T>
void forward_of(int width, int rows, unsigned seed) {
    for (const Case& c : cases(width)) {
        const Inputs<T> in(c.problem, c.size, seed * 100);
        const reference::Result truth = reference::attention(c.problem, in.q, in.k, in.v, {});
        schedule(seed++);
        const Output<T> found = run_forward<T>(c.problem, in, rows);
        expect_close(c.kind("forward"), label<T>(c, rows), found.out, truth.out, {c.size > 1 ? 1e-5 : 1e-6, 1.5},
                     widened(rounded<T>(truth.out)));
        expect_below("forward log-sum-exp", label<T>(c, rows), lse_error(found.lse, truth.lse), 2e-6);
    }
    const Case c = cases(width)[4];
    const Inputs<T> in(c.problem, 1, seed);
    schedule(0);
    const Output<T> first = run_forward<T>(c.problem, in, rows);
    for (unsigned number : {1u, 2u, 5u}) {
        schedule(number);
        const Output<T> again = run_forward<T>(c.problem, in, rows);
        const bool same = same_bits(first.out, again.out) && same_bits(first.lse, again.lse);
        report(same, "forward, same bits in any order: " + label<T>(c, rows), number, 0);
    }
}

template <typename T>
void backward_of(int width, unsigned seed) {
    for (const Case& c : cases(width)) {
        const Problem& p = c.problem;
        const Inputs<T> in(p, c.size, seed * 100);
        const reference::Result truth = reference::attention(p, in.q, in.k, in.v, in.grad);
        schedule(seed++);
        const Output<T> saved{rounded<T>(truth.out), std::vector<float>(truth.lse.begin(), truth.lse.end())};
        const Gradients<T> found = run_backward<T>(p, in, saved);
        Problem half = p;
        half.round = [](double x) { return double(device::to_float(rounded<T>(x))); };
        const reference::Result least = reference::attention(half, in.q, in.k, in.v, in.grad);
        const Limits limits{c.size > 1 ? 1e-4 : 1e-6, 1.1};
        expect_close(c.kind("backward dv"), label<T>(c, 64), found.dv, truth.dv, limits, least.dv);
        if (p.rows() == 1) {
            // One key: the gradients of query and key are zero, up to the rounding of a difference of equals.
            const double size = std::max(relative_error(widened(found.dq), truth.dq),
                                         relative_error(widened(found.dk), truth.dk));
            expect_below("backward of one row, absolute", label<T>(c, 64), size, 1e-4);
            continue;
        }
        expect_close(c.kind("backward dq"), label<T>(c, 64), found.dq, truth.dq, limits, least.dq);
        expect_close(c.kind("backward dk"), label<T>(c, 64), found.dk, truth.dk, limits, least.dk);
    }
    const Case c = cases(width)[4];
    const Inputs<T> in(c.problem, 1, seed);
    schedule(0);
    const Output<T> saved = run_forward<T>(c.problem, in, 64);
    const Gradients<T> first = run_backward<T>(c.problem, in, saved);
    for (unsigned number : {1u, 2u, 5u}) {
        schedule(number);
        const Gradients<T> again = run_backward<T>(c.problem, in, saved);
        const bool same =
            same_bits(first.dq, again.dq) && same_bits(first.dk, again.dk) && same_bits(first.dv, again.dv);
        report(same, "backward, same bits in any order: " + label<T>(c, 64), number, 0);
    }
}

}  // namespace

void forward() {
    unsigned seed = 1;
    for (int width : {64, 80, 128}) {
        forward_of<float>(width, 64, seed++);
        for (int rows : {64, 128}) {
            forward_of<__half>(width, rows, seed++);
            forward_of<__nv_bfloat16>(width, rows, seed++);
        }
    }
}

void backward() {
    unsigned seed = 20;
    for (int width : {64, 80, 128}) {
        backward_of<float>(width, seed++);
        backward_of<__half>(width, seed++);
        backward_of<__nv_bfloat16>(width, seed++);
    }
}

// The reference's own gradients against finite differences of its output.
void reference_gradients() {
    for (bool causal : {false, true}) {
        const Problem p = problem({3, 0, 2, 4}, {2, 1, 0, 5}, {-1, 0, 0, -1}, 4, 2, 8, causal);
        const Inputs<float> in(p, 1, 9);
        const reference::Result exact = reference::attention(p, in.q, in.k, in.v, in.grad);
        const auto loss = [&](const Values& q, const Values& k, const Values& v) {
            const Values out = reference::attention(p, q, k, v, {}).out;
            return reference::dot(out.data(), in.grad.data(), int(out.size()));
        };
        const auto check = [&](const char* name, Values x, const Values& gradient, auto at) {
            Values differences(x.size());
            for (std::size_t i = 0; i < x.size(); ++i) {
                const double step = 1e-5, centre = x[i];
                x[i] = centre + step;
                const double above = at(x);
                x[i] = centre - step;
                differences[i] = (above - at(x)) / (2 * step);
                x[i] = centre;
            }
            expect_below("reference gradients, finite differences", name, relative_error(gradient, differences), 1e-8);
        };
        check("dq", in.q, exact.dq, [&](const Values& x) { return loss(x, in.k, in.v); });
        check("dk", in.k, exact.dk, [&](const Values& x) { return loss(in.q, x, in.v); });
        check("dv", in.v, exact.dv, [&](const Values& x) { return loss(in.q, in.k, x); });
    }
}

}  // namespace test
