// The similarity matrix of ragged segments, and its backward.

#include "test.h"

namespace test {

namespace {

struct Problem {
    std::vector<int> queries, frames;
    int width;
    double scale;

    static std::vector<int> offsets(const std::vector<int>& lens) {
        std::vector<int> all{0};
        for (int len : lens) all.push_back(all.back() + len);
        return all;
    }
    std::vector<long long> out_offsets() const {
        std::vector<long long> all{0};
        for (std::size_t i = 0; i < queries.size(); ++i) all.push_back(all.back() + 1LL * queries[i] * frames[i]);
        return all;
    }
    int max_queries() const { return *std::max_element(queries.begin(), queries.end()); }
    // (segment, tile of 128 frames), and the first tile of each segment.
    std::vector<int> tiles(std::vector<int>& starts) const {
        std::vector<int> all;
        starts = {0};
        for (std::size_t s = 0; s < frames.size(); ++s) {
            for (int t = 0; t * 128 < frames[s]; ++t) all.insert(all.end(), {int(s), t});
            starts.push_back(int(all.size() / 2));
        }
        return all;
    }
};

struct Truth {
    Values out, dq, df;
};

double length(const double* x, int width) {
    double sum = 1e-16;
    for (int i = 0; i < width; ++i) sum += x[i] * x[i];
    return std::sqrt(sum);
}

// In f64. The gradient of a.b / (|a| |b|) by a is b / (|a| |b|) - a (a.b) / (|a|^3 |b|).
Truth truth_of(const Problem& p, const Values& q, const Values& f, const Values& grad) {
    Truth truth{Values(std::size_t(p.out_offsets().back())), Values(q.size()), Values(f.size())};
    std::size_t at = 0, query = 0, frame = 0;
    const int w = p.width;
    for (std::size_t s = 0; s < p.queries.size(); ++s) {
        for (int i = 0; i < p.queries[s]; ++i) {
            for (int j = 0; j < p.frames[s]; ++j, ++at) {
                const double *a = &q[(query + i) * w], *b = &f[(frame + j) * w];
                const double la = length(a, w), lb = length(b, w);
                double dot = 0;
                for (int d = 0; d < w; ++d) dot += a[d] * b[d];
                truth.out[at] = p.scale * dot / (la * lb);
                const double g = grad[at] * p.scale;
                for (int d = 0; d < w; ++d) {
                    truth.dq[(query + i) * w + d] += g * (b[d] / (la * lb) - a[d] * dot / (la * la * la * lb));
                    truth.df[(frame + j) * w + d] += g * (a[d] / (la * lb) - b[d] * dot / (lb * lb * lb * la));
                }
            }
        }
        query += p.queries[s];
        frame += p.frames[s];
    }
    return truth;
}

template <typename T>
struct Found {
    std::vector<float> out;
    std::vector<T> dq, df;
};

template <typename T>
Found<T> run(const Problem& p, const Values& xq, const Values& xf, const Values& xgrad) {
    std::vector<int> starts;
    const std::vector<int> list = p.tiles(starts);
    const unsigned blocks = unsigned(list.size() / 2);
    Memory<T> q(rounded<T>(xq)), f(rounded<T>(xf)), dq(xq.size()), df(xf.size());
    Memory<float> grad(rounded<float>(xgrad)), out(xgrad.size());
    Memory<float> inverse(std::size_t(Problem::offsets(p.frames).back()));
    Memory<int> q_offsets(Problem::offsets(p.queries)), f_offsets(Problem::offsets(p.frames)), tiles(list), at(starts);
    Memory<long long> out_offsets(p.out_offsets());
    const int most = p.max_queries();
    Memory<float> partial(std::size_t(blocks) * most * p.width);
    const std::string type = name_of<T>;
    const T *cq = q.data(), *cf = f.data();
    const int *qo = q_offsets.data(), *fo = f_offsets.data(), *list_at = tiles.data();
    const long long* oo = out_offsets.data();
    const float *ci = inverse.data(), *cg = grad.data();
    const std::size_t room = most <= 4 ? 4 : most <= 8 ? 8 : 16;
    emulate::launch_named("similarity_" + type, blocks, room * p.width * 4, cq, cf, qo, fo, oo, list_at, out.data(),
                          inverse.data(), p.width, float(p.scale));
    emulate::launch_named("similarity_backward_partial_" + type, blocks, 0, cf, ci, cg, qo, fo, oo, list_at,
                          partial.data(), most, p.width, float(p.scale));
    emulate::launch_named("similarity_backward_queries_" + type, unsigned(Problem::offsets(p.queries).back()),
                          std::size_t(p.width) * 4, cq, (const float*)partial.data(), qo, (const int*)at.data(),
                          dq.data(), int(p.queries.size()), most, p.width);
    // Blocks of queries that fit in 99 KB.
    const int at_once = std::min(most, 99 * 1024 / (4 * (p.width + 9)));
    Memory<float> sums(at_once < most ? xf.size() : 1);
    const std::size_t bytes = std::size_t(at_once) * (p.width + 9) * 4;
    emulate::launch_named("similarity_backward_frames_" + type, blocks, (bytes + 15) / 16 * 16, cq, cf, ci,
                          (const float*)out.data(), cg, qo, fo, oo, list_at, df.data(), sums.data(), at_once, p.width,
                          float(p.scale));
    return {out.values(), dq.values(), df.values()};
}

struct Case {
    const char* name;
    Problem problem;
    double size;
};

template <typename T>
void similarity_of(unsigned seed) {
    const std::vector<Case> cases{
        {"one of each", {{1}, {1}, 8, 1}, 1},
        {"ragged", {{8, 1, 3, 5, 4, 2}, {130, 1, 0, 7, 33, 128}, 64, 1}, 1},
        {"sixteen queries", {{16, 1, 9}, {70, 3, 257}, 72, 100}, 1},
        {"more queries than fit at once", {{17, 40, 2}, {20, 5, 129}, 24, 1}, 1},
        {"more queries than shared memory takes", {{80, 65, 2}, {5, 130, 9}, 768, 1}, 1},
        {"four queries", {{4, 2, 1}, {129, 0, 5}, 768, 1}, 1},
        {"eight queries, odd width", {{8, 6}, {37, 4}, 1000, 1}, 1},
        {"long rows", {{7, 3}, {13, 9}, 1160, 0.5}, 100},
        {"short vectors", {{3, 2}, {13, 9}, 40, 1}, 0.001},
    };
    for (const Case& c : cases) {
        const Problem& p = c.problem;
        Values q = random<T>(std::size_t(Problem::offsets(p.queries).back()) * p.width, c.size, seed * 10);
        Values f = random<T>(std::size_t(Problem::offsets(p.frames).back()) * p.width, c.size, seed * 10 + 1);
        const Values grad = random<float>(std::size_t(p.out_offsets().back()), 1, seed * 10 + 2);
        const Truth truth = truth_of(p, q, f, grad);
        schedule(seed++);
        const Found<T> found = run<T>(p, q, f, grad);
        const std::string what = std::string(c.name) + ", " + name_of<T>;
        expect_below("similarity", what, relative_error(widened(found.out), truth.out), 5e-7);
        // A width of 8 leaves gradients that are small differences of large numbers.
        const Limits limits{p.width == 8 ? 1e-5 : 1e-6, 1.1};
        expect_close("similarity dq", what, found.dq, truth.dq, limits, widened(rounded<T>(truth.dq)));
        expect_close("similarity df", what, found.df, truth.df, limits, widened(rounded<T>(truth.df)));
        for (unsigned number : {seed, seed + 3}) {
            schedule(number);
            const Found<T> again = run<T>(p, q, f, grad);
            const bool same =
                same_bits(found.out, again.out) && same_bits(found.dq, again.dq) && same_bits(found.df, again.df);
            report(same, "similarity, same bits in any order: " + what, number, 0);
        }
    }
}

// A zero vector has similarity 0 with everything; one like another has the scale, and never more.
template <typename T>
void edges() {
    const Problem p{{2}, {3}, 16, 3};
    Values q = random<T>(32, 1, 4), f(48);
    for (int i = 0; i < 16; ++i) {
        q[16 + i] = 0;
        f[i] = 2 * q[i];
        f[16 + i] = -q[i];
    }
    schedule(0);
    const Found<T> found = run<T>(p, q, f, Values(6, 1));
    const float expected[6] = {3, -3, 0, 0, 0, 0};
    double worst = 0;
    for (int i = 0; i < 6; ++i) worst = std::max(worst, double(std::abs(found.out[i] - expected[i])));
    expect_below("similarity of equal, opposite and zero vectors", name_of<T>, worst, 1e-6);
    bool inside = true, finite = true;
    for (float x : found.out) inside = inside && std::abs(x) <= 3;
    for (double x : widened(found.dq)) finite = finite && std::isfinite(x);
    report(inside, "similarity inside its interval", 0, 0);
    // 1e8 times the other vectors: too much for f16.
    if (!std::is_same<T, __half>::value) report(finite, "similarity gradient at a zero vector", 0, 0);
}

}  // namespace

void similarity() {
    similarity_of<float>(80);
    similarity_of<__half>(90);
    similarity_of<__nv_bfloat16>(100);
    edges<float>();
    edges<__half>();
    edges<__nv_bfloat16>();
}

}  // namespace test
