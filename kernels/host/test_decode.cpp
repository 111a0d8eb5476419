// Attention of one new row per sequence: keys in pieces, shared prefixes, and the combination of the parts.

#include "reference.h"
#include "test.h"

namespace test {

namespace {

using reference::Problem;

// A family of sequences with a common prefix (which may be empty) and tails of their own.
struct Family {
    int prefix;
    std::vector<int> tails;
};

// What the host hands to the kernel: pieces of keys, each with the queries that see it.
struct Plan {
    std::vector<int> first_rows, items;    // of each piece: its first key row; length, first query, queries, first slot
    std::vector<std::vector<int>> slots;   // of each query
    int slot_count = 0;

    void add(int first_row, int len, int first_query, int queries, int piece) {
        for (int at = 0; at < len; at += piece) {
            first_rows.push_back(first_row + at);
            const int row[4] = {std::min(piece, len - at), first_query, queries, slot_count};
            items.insert(items.end(), row, row + 4);
            for (int i = 0; i < queries; ++i) slots[first_query + i].push_back(slot_count + i);
            slot_count += queries;
        }
    }
};

// The rows of a prefix come before those of its tails.
Plan plan(const std::vector<Family>& families, int piece, int queries_per_item) {
    Plan all;
    int row = 0, query = 0;
    for (const Family& family : families) {
        const int members = int(family.tails.size());
        all.slots.resize(std::size_t(query + members));
        for (int i = 0; i < members; i += queries_per_item) {
            all.add(row, family.prefix, query + i, std::min(queries_per_item, members - i), piece);
        }
        row += family.prefix;
        for (int tail : family.tails) {
            all.add(row, tail, query++, 1, piece);
            row += tail;
        }
    }
    return all;
}

// As segments: a prefix is one without queries, which its tails continue.
Problem as_problem(const std::vector<Family>& families, int heads, int kv_heads, int width) {
    Problem p;
    p.heads = heads;
    p.kv_heads = kv_heads;
    p.width = width;
    p.scale = 1 / std::sqrt(double(width));
    p.causal = true;
    for (const Family& family : families) {
        const int prefix = int(p.q_lens.size());
        p.q_lens.push_back(0);
        p.k_lens.push_back(family.prefix);
        p.prefixes.push_back(-1);
        for (int tail : family.tails) {
            p.q_lens.push_back(1);
            p.k_lens.push_back(tail);
            p.prefixes.push_back(prefix);
        }
    }
    return p;
}

template <typename T>
std::vector<T> run_decode(const Problem& p, const Plan& plan, const Values& xq, const Values& xk, const Values& xv,
                          int rows) {
    Memory<T> q(rounded<T>(xq)), k(rounded<T>(xk)), v(rounded<T>(xv)), out(xq.size());
    std::vector<unsigned long long> keys, values;
    for (int row : plan.first_rows) {
        const std::size_t at = std::size_t(row) * p.kv_heads * p.width;
        keys.push_back(reinterpret_cast<unsigned long long>(k.data() + at));
        values.push_back(reinterpret_cast<unsigned long long>(v.data() + at));
    }
    std::vector<int> slot_starts{0}, slots;
    for (const auto& own : plan.slots) {
        slots.insert(slots.end(), own.begin(), own.end());
        slot_starts.push_back(int(slots.size()));
    }
    Memory<unsigned long long> keys_at(keys), values_at(values);
    Memory<int> items(plan.items), starts(slot_starts), all_slots(slots);
    Memory<float> partial(std::size_t(plan.slot_count) * p.heads * p.width);
    Memory<float> partial_lse(std::size_t(plan.slot_count) * p.heads);
    const std::string type = name_of<T>;
    const std::string name = "attention_decode_" + type + "_" + std::to_string(p.width) + "_" + std::to_string(rows);
    if (!plan.first_rows.empty()) {
        emulate::launch_named(name, unsigned(plan.first_rows.size()) * p.kv_heads, emulate::kernels().at(name).shared,
                              (const T*)q.data(), (const unsigned long long*)keys_at.data(),
                              (const unsigned long long*)values_at.data(), (const int*)items.data(), partial.data(),
                              partial_lse.data(), p.heads, p.kv_heads, float(p.scale));
    }
    emulate::launch_named("attention_combine_" + type, unsigned(p.rows() * p.heads), 0,
                          (const float*)partial.data(), (const float*)partial_lse.data(), (const int*)starts.data(),
                          (const int*)all_slots.data(), out.data(), p.heads, p.width);
    return out.values();
}

struct Case {
    const char* name;
    std::vector<Family> families;
    int heads, kv_heads, piece, queries_per_item, rows;
    double size;
};

template <typename T>
void decode_of(int width, unsigned seed) {
    const std::vector<Case> cases{
        {"one sequence", {{0, {333}}}, 7, 1, 96, 1, 16, 1},
        {"several lengths", {{0, {1, 64, 65, 200, 16}}}, 4, 2, 64, 1, 16, 1},
        {"a sequence without keys", {{0, {0, 3}}}, 2, 2, 64, 1, 16, 1},
        {"shared prefix", {{150, {5, 1, 0, 70}}, {0, {40}}, {64, {2, 3}}}, 6, 2, 100, 4, 16, 1},
        {"shared prefix, many rows", {{130, {5, 1, 0, 70, 9, 12, 3, 4, 1}}}, 14, 2, 64, 9, 64, 1},
        {"prefix for part of the group", {{130, {5, 1, 8}}}, 7, 1, 70, 2, 16, 1},
        {"large logits", {{50, {100, 20}}}, 4, 1, 64, 2, 64, 10},
        {"more parts than a warp has lanes", {{64, {2600, 9}}}, 2, 1, 64, 2, 16, 1},
    };
    for (const Case& c : cases) {
        const Problem p = as_problem(c.families, c.heads, c.kv_heads, width);
        const std::size_t keys = std::size_t(p.key_rows()) * p.kv_heads * width;
        const Values q = random<T>(std::size_t(p.rows()) * p.heads * width, c.size, seed * 10);
        const Values k = random<T>(keys, c.size, seed * 10 + 1), v = random<T>(keys, 1, seed * 10 + 2);
        const Values truth = reference::attention(p, q, k, v, {}).out;
        schedule(seed++);
        const auto found = run_decode<T>(p, plan(c.families, c.piece, c.queries_per_item), q, k, v, c.rows);
        const std::string what = std::string(c.name) + ", " + name_of<T> + ", width " + std::to_string(width);
        const Limits limits{c.size > 1 ? 1e-5 : 1e-6, 1.5};
        expect_close(c.size > 1 ? "large logits, decode" : "decode", what, found, truth, limits,
                     widened(rounded<T>(truth)));
        for (unsigned number : {seed, seed + 3}) {
            schedule(number);
            const auto again = run_decode<T>(p, plan(c.families, c.piece, c.queries_per_item), q, k, v, c.rows);
            report(same_bits(found, again), "decode, same bits in any order: " + what, number, 0);
        }
    }
}

}  // namespace

void decode() {
    unsigned seed = 50;
    for (int width : {64, 80, 128}) {
        decode_of<float>(width, seed++);
        decode_of<__half>(width, seed++);
        decode_of<__nv_bfloat16>(width, seed++);
    }
}

}  // namespace test
