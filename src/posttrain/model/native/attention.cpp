// Causal attention over the segments of a tree, and of newest tokens over a cache.
#include <vector>

#include "newest.h"

constexpr int CHUNK = 64;  // query tokens of one task
constexpr const float *NONE = nullptr;

// Segments of a tree: query tokens firsts[s] .. +lengths[s] of `query` (M, heads, size), each over depths[s] keys and
// then its segment's earlier ones and itself; lines[offsets[s]..] are these keys' places in key and value
// (T, kv_heads, size). out is (M, heads, size), normalisers (M, heads).
template <typename Number>
static void attend_segments(const Number *query, int64_t query_stride, const Number *key, int64_t key_stride,
                            const Number *value, int64_t value_stride, const int64_t *lines, const int64_t *offsets,
                            const int64_t *firsts, const int64_t *lengths, const int64_t *depths, const int64_t *tasks,
                            int64_t num_tasks, int64_t heads, int64_t kv_heads, int64_t size, Number *out,
                            float *normalisers, int threads) {
    const int64_t group = heads / kv_heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < num_tasks; task++) {
        const int64_t s = tasks[task * 3], head = tasks[task * 3 + 1], begin = tasks[task * 3 + 2];
        const int64_t end = begin + CHUNK < lengths[s] ? begin + CHUNK : lengths[s];
        const int64_t num_keys = depths[s] + end, padded = whole_blocks(num_keys), many = (end - begin) * group;
        Scratch keys(padded * size), values(num_keys * size), queries(many * size), room(TILE * padded), sums(TILE * size);
        for (int64_t j = num_keys; j < padded; j++)
            for (int64_t d = 0; d < size; d++) keys.at[(j / LANES * size + d) * LANES + j % LANES] = 0.0f;
        for (int64_t j = 0; j < num_keys; j++) {
            const int64_t place = lines[offsets[s] + j];
            const Number *k = key + place * key_stride + head * size, *v = value + place * value_stride + head * size;
            float *block = keys.at + j / LANES * size * LANES + j % LANES;
            for (int64_t d = 0; d < size; d++) block[d * LANES] = widen(k[d]);
            scaled(v, values.at + j * size, size, 1.0f);
        }
        auto row = [&](int64_t i) { return (firsts[s] + begin + i / group) * heads + head * group + i % group; };
        for (int64_t i = 0; i < many; i++) {
            const int64_t token = firsts[s] + begin + i / group, h = head * group + i % group;
            scaled(query + token * query_stride + h * size, queries.at + i * size, size, scale);
        }
        in_tiles(many, [&](auto tile, int64_t start) {
            // the later tokens of a tile see more; beyond a query's keys its weights are zero and values finite
            auto seen = [&](int64_t i) { return depths[s] + begin + (start + i) / group + 1; };
            const int64_t most = seen(tile - 1);
            const Queries these{queries.at + start * size, room.at, padded, sums.at};
            float scales[TILE];
            score<tile>(these, 0, Stretch<float>{keys.at, values.at, most}, size, 0, false);
            for (int i = 0; i < tile; i++) {
                float *scores = room.at + i * padded;
                scales[i] = soften(scores, seen(i), normalisers + row(start + i));
                for (int64_t j = whole_blocks(seen(i)); j < most; j++) scores[j] = 0.0f;
            }
            std::memset(sums.at, 0, tile * size * sizeof(float));
            mix<tile>(these, 0, Stretch<float>{keys.at, values.at, most}, size, 0, NONE);
            for (int i = 0; i < tile; i++) scaled(sums.at + i * size, out + row(start + i) * size, size, scales[i]);
        });
    }
}

// Newest tokens: row a is token lengths[a] of a sample whose first depths[a] tokens lie in a trunk and the others in
// slots[a]; rows may be tokens of one slot in a row. Row a's key and value join its slot, then its queries attend to all
// lengths[a] tokens. projected is (rows, heads + 2 kv_heads, size): queries, keys, values; cos and sin (rows, size / 2);
// keys are (slots, kv_heads, capacity / LANES, size, LANES), values (slots, kv_heads, capacity, size), and of one layer, as
// are trunks[a * 2] and trunks[a * 2 + 1], (layers, kv_heads, depth / LANES, size, LANES) and (layers, kv_heads, depth, size).
// tasks are (num_tasks, 2): rows, of one trunk, from the first `order` on, at most `most`. out is (rows, heads, size).
template <typename Number>
static void attend_newest(const Number *projected, const Number *cos, const Number *sin, Number *keys, Number *values,
                          const Number *const *trunks, const int64_t *depths, const int64_t *slots, const int64_t *lengths,
                          const int64_t *order, const int64_t *tasks, int64_t num_tasks, int64_t most, int64_t rows,
                          int64_t layer, int64_t longest, int64_t capacity, int64_t heads, int64_t kv_heads, int64_t size,
                          Number *out, int threads) {
    const Heads n{heads, kv_heads, size};
    auto token = [&](int64_t row) {
        const int64_t angle = row * size / 2;
        return Token<Number>{projected + row * (heads + 2 * kv_heads) * size, cos + angle, sin + angle, out + row * heads * size};
    };
    auto place = [&](int64_t row, int64_t head) {
        const int64_t own = (slots[row] * kv_heads + head) * capacity * size;
        const int64_t shared = (layer * kv_heads + head) * depths[row] * size;
        const bool has = depths[row] > 0;
        return Place<Number>{has ? trunks[row * 2] + shared : nullptr, has ? trunks[row * 2 + 1] + shared : nullptr,
                             keys + own, values + own, depths[row], lengths[row]};
    };
#pragma omp parallel num_threads(threads)
    {
        const Room room(n, most, longest);
        std::vector<Token<Number>> tokens(most);
        std::vector<Place<Number>> places(most);
#pragma omp for schedule(static)
        for (int64_t each = 0; each < rows * kv_heads; each++)
            keep_newest(token(each / kv_heads), place(each / kv_heads, each % kv_heads), n, each % kv_heads);
        // a few stretches for each thread, so that what it asks memory for next is what comes next
        const int64_t all = num_tasks * kv_heads, stretch = 1 + all / (8 * threads);
#pragma omp for schedule(dynamic, stretch)
        for (int64_t each = 0; each < all; each++) {
            const int64_t first = tasks[each / kv_heads * 2], count = tasks[each / kv_heads * 2 + 1], head = each % kv_heads;
            for (int64_t i = 0; i < count; i++) {
                tokens[i] = token(order[first + i]);
                places[i] = place(order[first + i], head);
            }
            const int64_t after = each + 1 < all ? each + 1 : each;
            const Place<Number> next = place(order[tasks[after / kv_heads * 2]], after % kv_heads);
            attend_newest_at(tokens.data(), places.data(), count, n, head, room, next);
        }
    }
}

extern "C" {
int lanes = LANES;
}
KERNEL(attend_segments)
KERNEL(attend_newest)
