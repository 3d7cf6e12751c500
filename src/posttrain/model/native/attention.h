// Causal attention over lists of keys. A query's sums always run over its keys in blocks of 16 from its row's start,
// so the result does not depend on padding, on what shares the batch, or on whether one query comes or all.
#pragma once
#include <cmath>
#include <cstdlib>
#include <type_traits>

#include "vector.h"

constexpr int MOST_HEADS = 64;   // query heads of one key head
constexpr int LONGEST_HEAD = 256;

struct Scratch {
    float *at;
    explicit Scratch(int64_t size) : at(static_cast<float *>(aligned_alloc(64, (size * 4 + 63) / 64 * 64))) {
        if (at == nullptr) abort();
    }
    ~Scratch() { free(at); }
};

template <typename Number>
static inline void fetch(const Number *at, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(Number))) __builtin_prefetch(at + i, 0, 2);
}

// scores[q] of BLOCKS x 16 keys, each block (size, 16) with the dimension outermost
template <int TILE, int BLOCKS, typename Key>
static inline void score_blocks(const float *const *queries, const Key *keys, int64_t size, float *const *scores) {
    vf found[BLOCKS][TILE] = {};
    for (int64_t d = 0; d < size; d++)
        for (int b = 0; b < BLOCKS; b++) {
            vf key = load(keys + (b * size + d) * LANES);
            for (int q = 0; q < TILE; q++) found[b][q] += key * queries[q][d];
        }
    for (int b = 0; b < BLOCKS; b++)
        for (int q = 0; q < TILE; q++) store(scores[q] + b * LANES, found[b][q]);
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
                       int64_t stride, int64_t size, const Value *next, bf16 *const *out) {
    int64_t longest = 0;
    for (int q = 0; q < TILE; q++) longest = counts[q] > longest ? counts[q] : longest;
    for (int64_t d = 0; d < size; d += 2 * LANES) {
        vf first[TILE] = {}, second[TILE] = {};
        for (int64_t j = 0; j < longest; j++) {
            if (next != nullptr && d == 0) fetch(next + j * size, size);
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
// TILE of them share each loaded key and value; it changes nothing but speed. Nor do fetches: memory brings the values
// while keys are multiplied, and then the keys at `next`, if there are any, which will be asked for next.
template <int TILE, typename Key, typename Value>
static void attend(const float *queries, const int64_t *counts, int64_t many, const Key *keys, const Value *values,
                   int64_t stride, int64_t size, float *room, int64_t longest, const Value *next, bf16 *const *out,
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
        auto score = [&](auto blocks, int64_t j) {
            if (next != nullptr && start == 0) fetch(values + j * stride, blocks * LANES * stride);
            for (int i = 0; i < TILE; i++) scores[i] = rows[i] + j;
            score_blocks<TILE, blocks>(q, keys + j * size, size, scores);
        };
        // enough sums at once to hide how long one addition takes
        constexpr int BLOCKS = TILE == 1 ? 4 : TILE < 4 ? 2 : 1;
        int64_t j = 0;
        for (; j + BLOCKS * LANES <= most; j += BLOCKS * LANES) score(std::integral_constant<int, BLOCKS>{}, j);
        for (; j < most; j += LANES) score(std::integral_constant<int, 1>{}, j);
        int64_t whole = (most + LANES - 1) / LANES * LANES;
        for (int i = 0; i < TILE; i++) {
            bool wanted = start + i < many && normalisers != nullptr;
            scales[i] = soften(rows[i], seen[i], wanted ? normalisers[start + i] : nullptr);
            for (int64_t j = (seen[i] + LANES - 1) / LANES * LANES; j < whole; j++) rows[i][j] = 0.0f;
        }
        mix<TILE>(rows, seen, scales, values, stride, size, start == 0 ? next : nullptr, to);
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

// A row's newest token at one key head of its slot: `projected` is (heads + 2 kv_heads, size), queries, keys, values.
struct Newest {
    const bf16 *projected, *cos, *sin;
    bf16 *keys, *values;  // the slot's, at this head: (capacity / 16, size, 16) and (capacity, size)
    int64_t length;       // tokens with the newest
    int64_t capacity;
    int64_t heads, kv_heads, size, head;
};

// its key and value join the cache
static inline void keep_newest(const Newest &at) {
    const int64_t size = at.size, place = at.length - 1;
    bf16 turned[LONGEST_HEAD], *block = at.keys + place / LANES * size * LANES + place % LANES;
    turn(at.projected + (at.heads + at.head) * size, at.cos, at.sin, turned, size);
    for (int64_t d = 0; d < size; d++) block[d * LANES] = turned[d];
    std::memcpy(at.values + place * size, at.projected + (at.heads + at.kv_heads + at.head) * size, size * sizeof(bf16));
}

// its queries attend to all `length` keys; out is (heads, size), room TILE x the length in whole lanes, queries group x size
template <int TILE>
static void attend_newest_at(const Newest &at, float *room, float *queries, bf16 *out) {
    const int64_t size = at.size, group = at.heads / at.kv_heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    int64_t counts[MOST_HEADS];
    bf16 *to[MOST_HEADS], turned[LONGEST_HEAD];
    for (int64_t i = 0; i < group; i++) {
        const int64_t h = at.head * group + i;
        turn(at.projected + h * size, at.cos, at.sin, turned, size);
        take_query(turned, queries + i * size, size, scale);
        counts[i] = at.length;
        to[i] = out + h * size;
    }
    const bf16 *next = at.keys + at.capacity * size;  // of the next head or slot
    attend<TILE>(queries, counts, group, at.keys, at.values, size, size, room, at.length, next, to, nullptr);
}

// as many queries at once as share a key head, up to what the registers hold
constexpr int NEWEST_TILE = 4;
static inline void attend_newest_at(const Newest &at, float *room, float *queries, bf16 *out) {
    const int64_t group = at.heads / at.kv_heads;
    auto run = group == 1   ? attend_newest_at<1>
               : group == 2 ? attend_newest_at<2>
               : group == 3 ? attend_newest_at<3>
                            : attend_newest_at<NEWEST_TILE>;
    run(at, room, queries, out);
}
