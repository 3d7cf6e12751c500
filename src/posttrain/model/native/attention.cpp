// Causal attention over the segments of a tree, and of newest tokens over a cache.
#include "attention.h"

constexpr int CHUNK = 64;        // query tokens of one task
constexpr int SEGMENT_TILE = 6;  // its sums fill the registers
constexpr const float *NONE = nullptr;

extern "C" {

// Segments of a tree: query tokens firsts[s] .. +lengths[s] of `query` (M, heads, size), each over depths[s] keys and
// then its segment's earlier ones and itself; lines[offsets[s]..] are these keys' places in key and value
// (T, kv_heads, size). out is (M, heads, size), normalisers (M, heads).
void attend_segments(const bf16 *query, int64_t query_stride, const bf16 *key, int64_t key_stride, const bf16 *value,
                     int64_t value_stride, const int64_t *lines, const int64_t *offsets, const int64_t *firsts,
                     const int64_t *lengths, const int64_t *depths, const int64_t *tasks, int64_t num_tasks,
                     int64_t heads, int64_t kv_heads, int64_t size, bf16 *out, float *normalisers, int threads) {
    const int64_t group = heads / kv_heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < num_tasks; task++) {
        const int64_t s = tasks[task * 3], head = tasks[task * 3 + 1], begin = tasks[task * 3 + 2];
        const int64_t end = begin + CHUNK < lengths[s] ? begin + CHUNK : lengths[s];
        const int64_t num_keys = depths[s] + end, padded = (num_keys + LANES - 1) / LANES * LANES;
        const int64_t many = (end - begin) * group;
        Scratch keys(padded * size), values(num_keys * size), queries(many * size), room(SEGMENT_TILE * padded);
        for (int64_t j = num_keys; j < padded; j++)
            for (int64_t d = 0; d < size; d++) keys.at[(j / LANES * size + d) * LANES + j % LANES] = 0.0f;
        for (int64_t j = 0; j < num_keys; j++) {
            const int64_t place = lines[offsets[s] + j];
            const bf16 *k = key + place * key_stride + head * size, *v = value + place * value_stride + head * size;
            float *block = keys.at + j / LANES * size * LANES + j % LANES;
            for (int64_t d = 0; d < size; d++) block[d * LANES] = widen(k[d]);
            for (int64_t d = 0; d < size; d += LANES) store(values.at + j * size + d, load(v + d));
        }
        int64_t counts[CHUNK * MOST_HEADS];
        bf16 *to[CHUNK * MOST_HEADS];
        float *norms[CHUNK * MOST_HEADS];
        for (int64_t i = 0; i < many; i++) {
            const int64_t token = begin + i / group, at = firsts[s] + token, h = head * group + i % group;
            take_query(query + at * query_stride + h * size, queries.at + i * size, size, scale);
            counts[i] = depths[s] + token + 1;
            to[i] = out + (at * heads + h) * size;
            norms[i] = normalisers + at * heads + h;
        }
        attend<SEGMENT_TILE>(queries.at, counts, many, keys.at, values.at, size, size, room.at, num_keys, NONE, to, norms);
    }
}

// The newest tokens of slots: row a's key and value join slots[a] at place lengths[a] - 1, then its queries attend to all
// lengths[a] of them, so that rows may be tokens of one slot in a row. projected is (rows, heads + 2 kv_heads, size): queries,
// keys, values; cos and sin (rows, size / 2). keys are (slots, kv_heads, capacity / 16, size, 16), values (slots, kv_heads,
// capacity, size); out (rows, heads, size).
void attend_newest(const bf16 *projected, const bf16 *cos, const bf16 *sin, bf16 *keys, bf16 *values,
                   const int64_t *slots, const int64_t *lengths, int64_t rows, int64_t capacity, int64_t heads,
                   int64_t kv_heads, int64_t size, bf16 *out, int threads) {
    auto newest = [&](int64_t task) {
        const int64_t row = task / kv_heads, head = task % kv_heads, place = (slots[row] * kv_heads + head) * capacity * size;
        const bf16 *from = projected + row * (heads + 2 * kv_heads) * size;
        return Newest{from, cos + row * size / 2, sin + row * size / 2, keys + place, values + place,
                      lengths[row], capacity, heads, kv_heads, size, head};
    };
#pragma omp parallel num_threads(threads)
    {
        Scratch room(NEWEST_TILE * (capacity + LANES)), queries(heads / kv_heads * size);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < rows * kv_heads; task++) keep_newest(newest(task));
#pragma omp for schedule(static)
        for (int64_t task = 0; task < rows * kv_heads; task++)
            attend_newest_at(newest(task), room.at, queries.at, out + task / kv_heads * heads * size);
    }
}
}
