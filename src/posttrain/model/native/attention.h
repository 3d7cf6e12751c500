// Causal attention over lists of keys. A query's sums always run over its keys in blocks from its row's start, so the
// result does not depend on padding, on what shares the batch, on where keys lie, or on whether one query comes or all.
#pragma once
#include <cmath>
#include <cstdlib>
#include <type_traits>

#include "vector.h"

constexpr int LONGEST_HEAD = 256;
constexpr int TILE = 6;          // queries that share each loaded key and value: their sums fill 16 registers

struct Scratch {
    float *at;
    explicit Scratch(int64_t size) : at(static_cast<float *>(aligned_alloc(64, (size * 4 + 63) / 64 * 64))) {
        if (at == nullptr) abort();
    }
    Scratch(const Scratch &) = delete;
    ~Scratch() { free(at); }
};

static inline int64_t whole_blocks(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

template <typename Number>
static inline void fetch(const Number *at, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(Number))) __builtin_prefetch(at + i, 0, 2);
}

// `count` keys, whole blocks of (size, LANES) with the dimension outermost, and their values (count, size).
template <typename Number>
struct Stretch {
    const Number *keys, *values;
    int64_t count;
};

// Queries of one key head, (many, size) times the scale, their scores, `stride` apart, and the sums of their values.
struct Queries {
    const float *queries;
    float *scores;
    int64_t stride;
    float *sums;
};

// run(tile, start) for whole tiles of MOST out of `many`, then one for the rest
template <int MOST = TILE, typename Run>
static inline void in_tiles(int64_t many, Run run, int64_t start = 0) {
    for (; start + MOST <= many; start += MOST) run(std::integral_constant<int, MOST>{}, start);
    if constexpr (MOST > 1)
        if (start < many) in_tiles<MOST - 1>(many, run, start);
}

// scores[q] of BLOCKS x LANES keys; as many numbers from `ahead` on are asked for meanwhile, if that is given
template <int MANY, int BLOCKS, typename Key>
static inline void score_blocks(const float *const *queries, const Key *keys, int64_t size, float *const *scores, const Key *ahead = nullptr) {
    vf found[BLOCKS][MANY] = {};
    for (int64_t d = 0; d < size; d++) {
        // a few at a time: more would have to wait for each other
        if (ahead != nullptr) fetch(ahead + d * BLOCKS * LANES, BLOCKS * LANES);
        vf key[BLOCKS];  // before the queries, of which only one then needs a register
        for (int b = 0; b < BLOCKS; b++) key[b] = load(keys + (b * size + d) * LANES);
        for (int q = 0; q < MANY; q++)
            for (int b = 0; b < BLOCKS; b++) found[b][q] = add_product(found[b][q], key[b], queries[q][d]);
    }
    for (int b = 0; b < BLOCKS; b++)
        for (int q = 0; q < MANY; q++) store(scores[q] + b * LANES, found[b][q]);
}

// Scores, from `at` on, of MANY queries from `start` on over the keys of a stretch, filled up to whole blocks. With `ahead`
// memory brings the values meanwhile; it changes nothing but speed.
template <int MANY, typename Number>
static inline void score(const Queries &of, int64_t start, const Stretch<Number> &over, int64_t size, int64_t at, bool ahead) {
    // enough sums at once to hide how long one addition takes
    constexpr int BLOCKS = MANY == 1 ? 8 : 12 / MANY;
    const float *queries[MANY];
    float *scores[MANY];
    for (int q = 0; q < MANY; q++) queries[q] = of.queries + (start + q) * size;
    auto run = [&](auto blocks, int64_t j) {
        for (int q = 0; q < MANY; q++) scores[q] = of.scores + (start + q) * of.stride + at + j;
        score_blocks<MANY, blocks>(queries, over.keys + j * size, size, scores, ahead ? over.values + j * size : nullptr);
    };
    int64_t j = 0;
    for (; j + BLOCKS * LANES <= over.count; j += BLOCKS * LANES) run(std::integral_constant<int, BLOCKS>{}, j);
    if (BLOCKS > 2)
        for (; j + 2 * LANES <= over.count; j += 2 * LANES) run(std::integral_constant<int, 2>{}, j);
    for (; j < over.count; j += LANES) run(std::integral_constant<int, 1>{}, j);
}

// softmax of `count` scores in place, zeros from there up to whole blocks; its sum's inverse, and the normaliser
static inline float soften(float *scores, int64_t count, float *normaliser) {
    const int64_t padded = whole_blocks(count);
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

// Sums += weights, which begin at `at`, times the values of a stretch, one after the other, for MANY queries. Memory brings
// as many keys from `next` on meanwhile, if that is given.
template <int MANY, typename Number>
static inline void mix(const Queries &of, int64_t start, const Stretch<Number> &over, int64_t size, int64_t at, const Number *next) {
    const float *weights[MANY];
    float *sums[MANY];
    for (int q = 0; q < MANY; q++) {
        weights[q] = of.scores + (start + q) * of.stride + at;
        sums[q] = of.sums + (start + q) * size;
    }
    for (int64_t d = 0; d < size; d += 2 * LANES) {
        vf first[MANY], second[MANY];
        for (int q = 0; q < MANY; q++) first[q] = load(sums[q] + d), second[q] = load(sums[q] + d + LANES);
        for (int64_t j = 0; j < over.count; j++) {
            if (next != nullptr) fetch(next + d * over.count + j * 2 * LANES, 2 * LANES);
            vf a = load(over.values + j * size + d), b = load(over.values + j * size + d + LANES);
            for (int q = 0; q < MANY; q++) {
                first[q] = add_product(first[q], a, weights[q][j]);
                second[q] = add_product(second[q], b, weights[q][j]);
            }
        }
        for (int q = 0; q < MANY; q++) store(sums[q] + d, first[q]), store(sums[q] + d + LANES, second[q]);
    }
}

template <typename From, typename To>
static inline void scaled(const From *from, To *to, int64_t size, float scale) {
    for (int64_t d = 0; d < size; d += LANES) store(to + d, load(from + d) * scale);
}
