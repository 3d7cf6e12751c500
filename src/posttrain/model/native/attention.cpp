// Causal attention over the segments of a tree, and of newest tokens over a cache.
#include "newest.h"

constexpr int CHUNK = 64;  // query tokens of one task

// Segments of a tree: query tokens firsts[s] .. +lengths[s] of `query` (M, heads, size), each over depths[s] keys and
// then its segment's earlier ones and itself; lines[offsets[s]..] are these keys' places in key and value
// (T, kv_heads, size). out is (M, heads, size), normalisers (M, heads).
template <typename Number>
static void attend_segments(const Number *query, int64_t query_stride, const Number *key, int64_t key_stride,
                            const Number *value, int64_t value_stride, const int64_t *lines, const int64_t *offsets,
                            const int64_t *firsts, const int64_t *lengths, const int64_t *depths, const int64_t *tasks,
                            int64_t num_tasks, int64_t heads, int64_t kv_heads, int64_t size, Number *out,
                            float *normalisers, int threads) {
    using Part = Multiplied<Number>;
    constexpr int64_t WIDE = AT_ONCE<Number>;
    const int64_t group = heads / kv_heads, words = size / WIDE;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < num_tasks; task++) {
        const int64_t s = tasks[task * 3], head = tasks[task * 3 + 1], begin = tasks[task * 3 + 2];
        const int64_t end = begin + CHUNK < lengths[s] ? begin + CHUNK : lengths[s];
        const int64_t num_keys = depths[s] + end, padded = whole_blocks(num_keys), many = (end - begin) * group;
        Scratch keys(padded * words), values(padded * words), queries(many * words), room(TILE * padded), sums(TILE * size);
        // beyond a query's keys its weights are zero, and what they meet is finite
        std::memset(keys.at, 0, padded * words * sizeof(float));
        std::memset(values.at, 0, padded * words * sizeof(float));
        const Part *laid_keys = reinterpret_cast<Part *>(keys.at), *laid_values = reinterpret_cast<Part *>(values.at);
        for (int64_t j = 0; j < num_keys; j++) {
            const int64_t place = lines[offsets[s] + j];
            const Number *k = key + place * key_stride + head * size, *v = value + place * value_stride + head * size;
            float row[LONGEST_HEAD], *block = keys.at + j / LANES * words * LANES + j % LANES;
            to_words(k, row, size);
            for (int64_t w = 0; w < words; w++) block[w * LANES] = row[w];
            to_words(v, row, size);
            put_among(values.at + j / WIDE * size, reinterpret_cast<const Part *>(row), j % WIDE, size);
        }
        auto row = [&](int64_t i) { return (firsts[s] + begin + i / group) * heads + head * group + i % group; };
        for (int64_t i = 0; i < many; i++) {
            const int64_t token = firsts[s] + begin + i / group, h = head * group + i % group;
            to_words(query + token * query_stride + h * size, queries.at + i * words, size);
        }
        in_tiles(many, [&](auto tile, int64_t start) {
            // the later tokens of a tile see more
            auto seen = [&](int64_t i) { return depths[s] + begin + (start + i) / group + 1; };
            const int64_t most = seen(tile - 1);
            const Queries these{queries.at + start * words, room.at, padded, sums.at};
            const Stretch<Part> all{laid_keys, laid_values, most};
            float scales[TILE];
            score<tile>(these, 0, all, size, 0, false);
            for (int i = 0; i < tile; i++) {
                float *scores = room.at + i * padded;
                scales[i] = soften<Part>(scores, seen(i), scale, normalisers + row(start + i));
                const int64_t whole = whole_blocks(seen(i));
                std::memset(reinterpret_cast<Part *>(scores) + whole, 0, (whole_blocks(most) - whole) * sizeof(Part));
            }
            std::memset(sums.at, 0, tile * size * sizeof(float));
            mix<tile>(these, 0, all, size, 0, static_cast<const Part *>(nullptr));
            for (int i = 0; i < tile; i++) scaled(sums.at + i * size, out + row(start + i) * size, size, scales[i]);
        });
    }
}

// Newest tokens: each one's key and value join its slot, then its queries attend to all of its sample's tokens. See Crowd.
template <typename Number>
static void attend_newest(const Number *projected, const Number *cos, const Number *sin, Number *keys, Number *values,
                          const Number *const *trunks, const int64_t *depths, const int64_t *slots, const int64_t *lengths,
                          const int64_t *order, const int64_t *tasks, int64_t num_tasks, int64_t most, int64_t rows,
                          int64_t layer, int64_t longest, int64_t capacity, int64_t heads, int64_t kv_heads, int64_t size,
                          Number *out, int threads) {
    const Crowd<Number> crowd{{heads, kv_heads, size}, cos, sin, trunks, depths, slots, lengths, order, tasks,
                              num_tasks, most, longest, capacity};
    const Attending<Number> here{crowd, projected, out, keys, values, layer, false};
#pragma omp parallel num_threads(threads)
    {
        const Room room(crowd.n, most, longest);
        Task<Number> task(most);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) here.keep(row, row + 1);
        here.attend_all(room, task, threads);
    }
}

extern "C" {
int lanes = LANES;
int64_t at_once_float32 = AT_ONCE<float>, at_once_bfloat16 = AT_ONCE<bf16>;
}
KERNEL(attend_segments)
KERNEL(attend_newest)
