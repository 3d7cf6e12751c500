// Causal attention over lists of keys. A query's sums always run over its keys in blocks of 16 from its row's start,
// so the result does not depend on padding, on what shares the batch, or on whether one query comes or all.
#include <cmath>
#include <cstdlib>

#include "vector.h"

constexpr int CHUNK = 64;  // query tokens of one task
constexpr int MOST_HEADS = 64;   // query heads of one key head
constexpr int LONGEST_HEAD = 256;
constexpr int SEGMENT_TILE = 6;  // its sums fill the registers

struct Scratch {
    float *at;
    explicit Scratch(int64_t size) : at(static_cast<float *>(aligned_alloc(64, (size * 4 + 63) / 64 * 64))) {
        if (at == nullptr) abort();
    }
    ~Scratch() { free(at); }
};

// scores[q][16] of one block of keys, (size, 16) with the dimension outermost
template <int TILE, typename Key>
static inline void score_block(const float *const *queries, const Key *keys, int64_t size, float *const *scores) {
    vf found[TILE] = {};
    for (int64_t d = 0; d < size; d++) {
        vf key = load(keys + d * LANES);
        for (int q = 0; q < TILE; q++) found[q] += key * queries[q][d];
    }
    for (int q = 0; q < TILE; q++) store(scores[q], found[q]);
}

// softmax of `count` scores in place, padded with zeros to whole lanes; the sum's inverse and the normaliser
static inline float soften(float *scores, int64_t count, float *normaliser) {
    int64_t padded = (count + LANES - 1) / LANES * LANES;
    for (int64_t j = count; j < padded; j++) scores[j] = MINUS_INFINITY;
    vf peaks = splat(MINUS_INFINITY), mass{};
    for (int64_t j = 0; j < padded; j += LANES) peaks = larger(load(scores + j), peaks);
    float peak = largest(peaks);
    for (int64_t j = 0; j < padded; j += LANES) {
        vf p = exponential(load(scores + j) - peak);
        mass += p;
        store(scores + j, p);
    }
    float total = sum(mass);
    if (normaliser != nullptr) *normaliser = peak + std::log(total);
    return 1.0f / total;
}

// out[q] = sum over keys of scores[q] * values, for TILE queries, each over the first counts[q] keys
template <int TILE, typename Value>
static inline void mix(float *const *scores, const int64_t *counts, const float *scales, const Value *values,
                       int64_t stride, int64_t size, bf16 *const *out) {
    int64_t longest = 0;
    for (int q = 0; q < TILE; q++) longest = counts[q] > longest ? counts[q] : longest;
    for (int64_t d = 0; d < size; d += 2 * LANES) {
        vf first[TILE] = {}, second[TILE] = {};
        for (int64_t j = 0; j < longest; j++) {
            vf a = load(values + j * stride + d), b = load(values + j * stride + d + LANES);
            for (int q = 0; q < TILE; q++) {
                // beyond a query's keys its weight is zero and the value finite: the sum stays as it is
                first[q] += a * scores[q][j];
                second[q] += b * scores[q][j];
            }
        }
        for (int q = 0; q < TILE; q++) {
            if (out[q] == nullptr) continue;
            store(out[q] + d, first[q] * scales[q]);
            store(out[q] + d + LANES, second[q] * scales[q]);
        }
    }
}

// The queries of one key head, `many` of them, over keys that they share a start of; query i sees counts[i] keys.
// TILE of them share each loaded key and value; it changes nothing but speed.
template <int TILE, typename Key, typename Value>
static void attend(const float *queries, const int64_t *counts, int64_t many, const Key *keys, const Value *values,
                   int64_t stride, int64_t size, float *room, int64_t longest, bf16 *const *out,
                   float *const *normalisers) {
    int64_t padded = (longest + LANES - 1) / LANES * LANES;
    for (int64_t start = 0; start < many; start += TILE) {
        const float *q[TILE];
        float *scores[TILE], *rows[TILE], scales[TILE];
        int64_t seen[TILE], most = 0;
        bf16 *to[TILE];
        for (int i = 0; i < TILE; i++) {
            bool real = start + i < many;
            q[i] = queries + (real ? start + i : start) * size;
            seen[i] = counts[real ? start + i : start];
            to[i] = real ? out[start + i] : nullptr;
            rows[i] = room + i * padded;
            most = seen[i] > most ? seen[i] : most;
        }
        for (int64_t j = 0; j < most; j += LANES) {
            for (int i = 0; i < TILE; i++) scores[i] = rows[i] + j;
            score_block<TILE>(q, keys + j * size, size, scores);
        }
        int64_t whole = (most + LANES - 1) / LANES * LANES;
        for (int i = 0; i < TILE; i++) {
            bool wanted = start + i < many && normalisers != nullptr;
            scales[i] = soften(rows[i], seen[i], wanted ? normalisers[start + i] : nullptr);
            for (int64_t j = (seen[i] + LANES - 1) / LANES * LANES; j < whole; j++) rows[i][j] = 0.0f;
        }
        mix<TILE>(rows, seen, scales, values, stride, size, to);
    }
}

static inline void take_query(const bf16 *from, float *to, int64_t size, float scale) {
    for (int64_t d = 0; d < size; d += LANES) store(to + d, load(from + d) * scale);
}

// Rotate one head by its position's angles (size / 2 of each).
static inline void turn(const bf16 *from, const bf16 *cos, const bf16 *sin, bf16 *to, int64_t size) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        vf a = load(from + i), b = load(from + half + i), c = load(cos + i), s = load(sin + i);
        store(to + i, a * c - b * s);
        store(to + half + i, b * c + a * s);
    }
}

template <int TILE>
static void attend_newest_by(const bf16 *projected, const bf16 *cos, const bf16 *sin, bf16 *keys, bf16 *values,
                             const int64_t *lengths, int64_t rows, int64_t capacity, int64_t heads, int64_t kv_heads,
                             int64_t size, bf16 *out, int threads) {
    const int64_t group = heads / kv_heads, width = (heads + 2 * kv_heads) * size;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
#pragma omp parallel num_threads(threads)
    {
        Scratch room(TILE * (capacity + LANES)), queries(group * size);
        int64_t counts[MOST_HEADS];
        bf16 *to[MOST_HEADS], turned[LONGEST_HEAD];
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < rows * kv_heads; task++) {
            const int64_t row = task / kv_heads, head = task % kv_heads, at = lengths[row] - 1;
            const bf16 *from = projected + row * width, *c = cos + row * size / 2, *s = sin + row * size / 2;
            bf16 *own_keys = keys + task * capacity * size, *own_values = values + task * capacity * size;
            turn(from + (heads + head) * size, c, s, turned, size);
            bf16 *block = own_keys + at / LANES * size * LANES + at % LANES;
            for (int64_t d = 0; d < size; d++) block[d * LANES] = turned[d];
            std::memcpy(own_values + at * size, from + (heads + kv_heads + head) * size, size * sizeof(bf16));
            for (int64_t i = 0; i < group; i++) {
                const int64_t h = head * group + i;
                turn(from + h * size, c, s, turned, size);
                take_query(turned, queries.at + i * size, size, scale);
                counts[i] = lengths[row];
                to[i] = out + (row * heads + h) * size;
            }
            attend<TILE>(queries.at, counts, group, own_keys, own_values, size, size, room.at, lengths[row], to, nullptr);
        }
    }
}

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
        attend<SEGMENT_TILE>(queries.at, counts, many, keys.at, values.at, size, size, room.at, num_keys, to, norms);
    }
}

// The newest token of each slot: its key and value join the cache at place lengths[a] - 1, its queries attend to all
// lengths[a]. projected is (rows, heads + 2 kv_heads, size): queries, keys, values; cos and sin (rows, size / 2).
// keys are (slots, kv_heads, capacity / 16, size, 16), values (slots, kv_heads, capacity, size); out (rows, heads, size).
void attend_newest(const bf16 *projected, const bf16 *cos, const bf16 *sin, bf16 *keys, bf16 *values,
                   const int64_t *lengths, int64_t rows, int64_t capacity, int64_t heads, int64_t kv_heads, int64_t size,
                   bf16 *out, int threads) {
    const int64_t group = heads / kv_heads;
    auto run = group == 1   ? attend_newest_by<1>
               : group == 2 ? attend_newest_by<2>
               : group == 3 ? attend_newest_by<3>
                            : attend_newest_by<4>;
    run(projected, cos, sin, keys, values, lengths, rows, capacity, heads, kv_heads, size, out, threads);
}
}
