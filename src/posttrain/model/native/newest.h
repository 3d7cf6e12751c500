// Newest tokens of samples: they join their slots in the cache, and attend to all that is before them.
#pragma once
#include <vector>

#include "attention.h"

// Rotate one head by its position's angles (size / 2 of each).
template <typename Number>
static inline void turn(const Number *from, const Number *cos, const Number *sin, Number *to, int64_t size) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        vf a = load(from + i), b = load(from + half + i), c = load(cos + i), s = load(sin + i);
        store(to + i, a * c - b * s);
        store(to + half + i, b * c + a * s);
    }
}

struct Heads {
    int64_t heads, kv_heads, size;
    int64_t group() const { return heads / kv_heads; }
};

// One key head of a sample: its first `depth` tokens lie in a trunk that others may share, (depth / LANES, size, LANES)
// and (depth, size), the others in its slot, laid out alike.
template <typename Number>
struct Place {
    const Number *trunk_keys, *trunk_values;
    Number *keys, *values;
    int64_t depth, length;  // length: tokens with the newest
};

// A newest token: `projected` is (heads + 2 kv_heads, size), queries, keys, values; out (heads, size).
template <typename Number>
struct Token {
    const Number *projected, *cos, *sin;
    Number *out;
};

// its key and value at `head` join the slot
template <typename Number>
static inline void keep_newest(const Token<Number> &token, const Place<Number> &at, const Heads &n, int64_t head) {
    constexpr int64_t WIDE = AT_ONCE<Number>;
    const int64_t place = at.length - 1 - at.depth;
    const Number *value = token.projected + (n.heads + n.kv_heads + head) * n.size;
    Number turned[LONGEST_HEAD], *block = at.keys + place / LANES * n.size * LANES + place % LANES * WIDE;
    Number *row = at.values + place / WIDE * n.size * WIDE + place % WIDE;
    turn(token.projected + (n.heads + head) * n.size, token.cos, token.sin, turned, n.size);
    for (int64_t d = 0; d < n.size; d++) block[d / WIDE * LANES * WIDE + d % WIDE] = turned[d];
    for (int64_t d = 0; d < n.size; d++) row[d * WIDE] = value[d];
}

// Room for the queries of `rows` tokens of up to `longest` tokens before them.
struct Room {
    Scratch queries, scores, sums, scales;
    int64_t stride;
    Room(const Heads &n, int64_t rows, int64_t longest)
        : queries(rows * n.group() * n.size), scores(rows * n.group() * whole_blocks(longest)),
          sums(rows * n.group() * n.size), scales(rows * n.group()), stride(whole_blocks(longest)) {}
};

// At `head`, `count` tokens of samples with one trunk attend to all of theirs. `next` is where the one after them looks.
template <typename Number>
static void attend_newest_at(const Token<Number> *tokens, const Place<Number> *places, int64_t count, const Heads &n,
                             int64_t head, const Room &room, const Place<Number> &next) {
    const int64_t group = n.group(), size = n.size, many = count * group, depth = places[0].depth;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    for (int64_t i = 0; i < many; i++) {
        const Token<Number> &token = tokens[i / group];
        Number turned[LONGEST_HEAD];
        turn(token.projected + (head * group + i % group) * size, token.cos, token.sin, turned, size);
        to_words(turned, room.queries.at + i * (size / AT_ONCE<Number>), size);
    }
    std::memset(room.sums.at, 0, many * size * sizeof(float));
    const Queries all{room.queries.at, room.scores.at, room.stride, room.sums.at};
    const Stretch<Number> trunk{places[0].trunk_keys, places[0].trunk_values, depth};
    auto own = [&](int64_t row) { return Stretch<Number>{places[row].keys, places[row].values, places[row].length - depth}; };
    in_tiles(many, [&](auto tile, int64_t start) { score<tile>(all, start, trunk, size, 0, start == 0); });
    for (int64_t row = 0; row < count; row++)
        in_tiles(group, [&](auto tile, int64_t start) { score<tile>(all, row * group + start, own(row), size, depth, start == 0); });
    for (int64_t i = 0; i < many; i++)
        room.scales.at[i] = soften<Multiplied<Number>>(room.scores.at + i * room.stride, places[i / group].length, scale, nullptr);
    in_tiles(many, [&](auto tile, int64_t start) { mix<tile>(all, start, trunk, size, 0, start == 0 ? next.trunk_keys : nullptr); });
    for (int64_t row = 0; row < count; row++)
        in_tiles(group, [&](auto tile, int64_t start) {
            const bool is_last = row + 1 == count && start == 0;
            mix<tile>(all, row * group + start, own(row), size, depth, is_last ? next.keys : static_cast<const Number *>(nullptr));
        });
    for (int64_t i = 0; i < many; i++)
        scaled(room.sums.at + i * size, tokens[i / group].out + (head * group + i % group) * size, size, room.scales.at[i]);
}

// The newest tokens of many samples. Row a is token lengths[a] of a sample whose first depths[a] tokens lie in a trunk and
// the others in slots[a]; rows may be tokens of one slot in a row. cos and sin are (rows, size / 2); keys (slots, kv_heads,
// capacity / LANES, size, LANES) and values (slots, kv_heads, capacity, size) of one layer, as are trunks[a * 2] and
// trunks[a * 2 + 1], (layers, kv_heads, depth / LANES, size, LANES) and (layers, kv_heads, depth, size). tasks are
// (num_tasks, 2): rows, of one trunk, from the first `order` on, at most `most`.
template <typename Number>
struct Crowd {
    Heads n;
    const Number *cos, *sin;
    const Number *const *trunks;
    const int64_t *depths, *slots, *lengths, *order, *tasks;
    int64_t num_tasks, most, longest, capacity;

    Place<Number> place(int64_t row, int64_t head, int64_t layer, Number *keys, Number *values) const {
        const int64_t own = (slots[row] * n.kv_heads + head) * capacity * n.size;
        const int64_t shared = (layer * n.kv_heads + head) * depths[row] * n.size;
        const bool has = depths[row] > 0;
        return {has ? trunks[row * 2] + shared : nullptr, has ? trunks[row * 2 + 1] + shared : nullptr,
                keys + own, values + own, depths[row], lengths[row]};
    }
};

// Room for the rows of one task, once for each thread: a step has thousands of them.
template <typename Number>
struct Task {
    std::vector<Token<Number>> tokens;
    std::vector<Place<Number>> places;
    explicit Task(int64_t most) : tokens(most), places(most) {}
};

// A layer for a crowd: projected is (rows, heads + 2 kv_heads, size), queries, keys, values; out (rows, heads, size). Both
// have their rows in the order of tasks where `is_ordered`.
template <typename Number>
struct Attending {
    const Crowd<Number> &of;
    const Number *projected;
    Number *out, *keys, *values;
    int64_t layer;
    bool is_ordered;

    Token<Number> token(int64_t at) const {
        const int64_t row = of.order[at], line = is_ordered ? at : row, angle = row * of.n.size / 2;
        return {projected + line * (of.n.heads + 2 * of.n.kv_heads) * of.n.size, of.cos + angle, of.sin + angle,
                out + line * of.n.heads * of.n.size};
    }
    Place<Number> place(int64_t at, int64_t head) const { return of.place(of.order[at], head, layer, keys, values); }

    // keys and values of rows from `at` on join their slots
    void keep(int64_t at, int64_t end) const {
        for (; at < end; at++)
            for (int64_t head = 0; head < of.n.kv_heads; head++) keep_newest(token(at), place(at, head), of.n, head);
    }
    // task `each` / kv_heads at one key head; `after` is the one that comes after it
    void attend(int64_t each, int64_t after, const Room &room, Task<Number> &task) const {
        const int64_t first = of.tasks[each / of.n.kv_heads * 2], count = of.tasks[each / of.n.kv_heads * 2 + 1];
        const int64_t head = each % of.n.kv_heads;
        for (int64_t i = 0; i < count; i++) task.tokens[i] = token(first + i), task.places[i] = place(first + i, head);
        const Place<Number> next = place(of.tasks[after / of.n.kv_heads * 2], after % of.n.kv_heads);
        attend_newest_at(task.tokens.data(), task.places.data(), count, of.n, head, room, next);
    }
    // all tasks, shared among the threads, which meet at the end
    void attend_all(const Room &room, Task<Number> &task, int threads) const {
        // a few stretches for each thread, so that what it asks memory for next is what comes next
        const int64_t all = of.num_tasks * of.n.kv_heads, stretch = 1 + all / (8 * threads);
#pragma omp for schedule(dynamic, stretch)
        for (int64_t each = 0; each < all; each++) attend(each, each + 1 < all ? each + 1 : each, room, task);
    }
};
