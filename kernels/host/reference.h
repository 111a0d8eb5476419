// Attention and its gradients in f64, as plainly as they can be written; and the same where what enters a product is
// rounded, as half precision must.
#pragma once

#include <cmath>
#include <functional>
#include <vector>

namespace reference {

using Values = std::vector<double>;

struct Problem {
    std::vector<int> q_lens, k_lens;
    std::vector<int> prefixes;  // empty: none
    int heads = 1, kv_heads = 1, width = 8;
    bool causal = false;
    double scale = 1;
    std::function<double(double)> round;  // of probabilities, output and gradients; empty: exact

    double rounded(double x) const { return round ? round(x) : x; }
    static std::vector<int> offsets(const std::vector<int>& lens) {
        std::vector<int> all{0};
        for (int len : lens) all.push_back(all.back() + len);
        return all;
    }
    int rows() const { return offsets(q_lens).back(); }
    int key_rows() const { return offsets(k_lens).back(); }
    // Rows of the keys of a segment, those of its prefix first.
    std::vector<int> keys_of(int segment) const {
        const std::vector<int> starts = offsets(k_lens);
        std::vector<int> rows;
        const auto add = [&](int s) {
            for (int row = starts[s]; row < starts[s + 1]; ++row) rows.push_back(row);
        };
        if (!prefixes.empty() && prefixes[segment] >= 0) add(prefixes[segment]);
        add(segment);
        return rows;
    }
};

struct Result {
    Values out, lse;      // (rows, heads, width), (heads, rows)
    Values dq, dk, dv;
};

inline double dot(const double* a, const double* b, int width) {
    double sum = 0;
    for (int i = 0; i < width; ++i) sum += a[i] * b[i];
    return sum;
}

// One query row: probabilities of its keys, and the log-sum-exp.
inline Values probabilities(const Problem& p, const double* q, const Values& k, const std::vector<int>& keys, int count,
                            int kv_head, double& lse) {
    Values scores(count);
    double top = -INFINITY, total = 0;
    for (int j = 0; j < count; ++j) {
        scores[j] = p.scale * dot(q, &k[(std::size_t(keys[j]) * p.kv_heads + kv_head) * p.width], p.width);
        top = std::max(top, scores[j]);
    }
    for (double& score : scores) {
        score = std::exp(score - top);
        total += score;
    }
    for (double& score : scores) score /= total;
    lse = count ? top + std::log(total) : -INFINITY;
    return scores;
}

inline void add_row(Result& r, const Problem& p, const Values& q, const Values& k, const Values& v, const Values& grad,
                    const std::vector<int>& keys, int count, int row, int head) {
    const int kv_head = head / (p.heads / p.kv_heads), w = p.width;
    const std::size_t at = (std::size_t(row) * p.heads + head) * w;
    const auto place = [&](int j) { return (std::size_t(keys[j]) * p.kv_heads + kv_head) * w; };
    double& lse = r.lse[std::size_t(head) * p.rows() + row];
    const Values probs = probabilities(p, &q[at], k, keys, count, kv_head, lse);
    for (int j = 0; j < count; ++j) {
        for (int d = 0; d < w; ++d) r.out[at + d] += probs[j] * v[place(j) + d];
    }
    for (int d = 0; d < w; ++d) r.out[at + d] = p.rounded(r.out[at + d]);
    if (grad.empty()) return;
    const double delta = dot(&grad[at], &r.out[at], w);
    for (int j = 0; j < count; ++j) {
        const double ds = probs[j] * (dot(&grad[at], &v[place(j)], w) - delta) * p.scale;
        const double rounded_ds = p.rounded(ds), rounded_p = p.rounded(probs[j]);
        for (int d = 0; d < w; ++d) {
            r.dq[at + d] += rounded_ds * k[place(j) + d];
            r.dk[place(j) + d] += rounded_ds * q[at + d];
            r.dv[place(j) + d] += rounded_p * grad[at + d];
        }
    }
}

// With an empty `grad` only the forward.
inline Result attention(const Problem& p, const Values& q, const Values& k, const Values& v, const Values& grad) {
    Result r;
    r.out.assign(q.size(), 0);
    r.lse.assign(std::size_t(p.heads) * p.rows(), 0);
    r.dq.assign(q.size(), 0);
    r.dk.assign(k.size(), 0);
    r.dv.assign(v.size(), 0);
    int row = 0;
    for (std::size_t segment = 0; segment < p.q_lens.size(); ++segment) {
        const std::vector<int> keys = p.keys_of(int(segment));
        const int len = p.q_lens[segment], all = int(keys.size());
        for (int i = 0; i < len; ++i, ++row) {
            const int seen = p.causal ? std::min(all, std::max(0, i + all - len + 1)) : all;
            for (int head = 0; head < p.heads; ++head) add_row(r, p, q, k, v, grad, keys, seen, row, head);
        }
    }
    for (Values* gradient : {&r.dq, &r.dk, &r.dv}) {
        for (double& x : *gradient) x = p.rounded(x);
    }
    return r;
}

}  // namespace reference
