// Causal attention over lists of keys. A query's sums always run over its keys in blocks from its row's start, so the
// result does not depend on padding, on what shares the batch, on where keys lie, or on whether one query comes or all.
#pragma once
#include <cmath>
#include <cstdlib>
#include <type_traits>

#include "words.h"

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

// `count` keys, whole blocks of (size, LANES) with the dimension outermost, and their values (count, size). Where AT_ONCE is
// two, a word holds two neighbours of a key, which lie in blocks of words, or the same number of a value and the next.
template <typename Number>
struct Stretch {
    const Number *keys, *values;
    int64_t count;
};

// Queries of one key head, (many, size / AT_ONCE) words, their scores, `stride` apart, which become weights there, AT_ONCE in
// each word, and the sums of their values, (many, size).
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
    constexpr int64_t WIDE = AT_ONCE<Key>;
    vf found[BLOCKS][MANY] = {};
    for (int64_t w = 0, words = size / WIDE; w < words; w++, keys += LANES * WIDE) {
        // a few at a time: more would have to wait for each other
        if (ahead != nullptr) fetch(ahead + w * WIDE * BLOCKS * LANES, WIDE * BLOCKS * LANES);
        vf key[BLOCKS];  // before the queries, of which only one then needs a register
        for (int b = 0; b < BLOCKS; b++) key[b] = load_words(keys + b * size * LANES);
        for (int q = 0; q < MANY; q++)
            for (int b = 0; b < BLOCKS; b++) found[b][q] = add_words(found[b][q], key[b], queries[q][w], AS<Key>);
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
    for (int q = 0; q < MANY; q++) queries[q] = of.queries + (start + q) * (size / AT_ONCE<Number>);
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

// exp(scores times scale - their largest) of `count` in their place, as numbers of words, zeros from there up to whole blocks;
// their sum's inverse, and the normaliser
template <typename Part>
static inline float soften(float *scores, int64_t count, float scale, float *normaliser) {
    Part *weights = reinterpret_cast<Part *>(scores);
    const int64_t padded = whole_blocks(count);
    for (int64_t j = count; j < padded; j++) scores[j] = MINUS_INFINITY;
    vf peaks = splat(MINUS_INFINITY), mass{};
    for (int64_t j = 0; j < padded; j += LANES) peaks = larger(load(scores + j), peaks);
    const float peak = largest(peaks) * scale;
    for (int64_t j = 0; j < padded; j += LANES) {
        const vf p = exponential(add_product(splat(-peak), load(scores + j), scale));
        mass += p;
        put(weights + j, p);
    }
    float total = sum(mass);
    if (normaliser != nullptr) *normaliser = peak + std::log(total);
    return 1.0f / total;
}

// Sums += weights, which begin at `at`, times COLUMNS x LANES numbers of the values of a stretch from `from` on
template <int MANY, int COLUMNS, typename Number>
static inline void mix_columns(const Queries &of, int64_t start, const Stretch<Number> &over, int64_t size, int64_t at,
                               int64_t from, const Number *next) {
    constexpr int64_t WIDE = AT_ONCE<Number>;
    const float *weights[MANY];
    float *to[MANY];
    vf sums[COLUMNS][MANY];
    for (int q = 0; q < MANY; q++) {
        weights[q] = of.scores + (start + q) * of.stride + at / WIDE;
        to[q] = of.sums + (start + q) * size + from;
        for (int c = 0; c < COLUMNS; c++) sums[c][q] = load(to[q] + c * LANES);
    }
    const Number *values = over.values + from * WIDE;
    for (int64_t w = 0, words = (over.count + WIDE - 1) / WIDE; w < words; w++, values += size * WIDE) {
        if (next != nullptr) fetch(next + from * over.count + w * WIDE * COLUMNS * LANES, WIDE * COLUMNS * LANES);
        for (int c = 0; c < COLUMNS; c++) {
            const vf value = load_words(values + c * LANES * WIDE);
            for (int q = 0; q < MANY; q++) sums[c][q] = add_words(sums[c][q], value, weights[q][w], AS<Number>);
        }
    }
    for (int q = 0; q < MANY; q++)
        for (int c = 0; c < COLUMNS; c++) store(to[q] + c * LANES, sums[c][q]);
}

// Sums += weights, which begin at `at`, times the values of a stretch, one after the other, for MANY queries. Memory brings
// as many keys from `next` on meanwhile, if that is given.
template <int MANY, typename Number>
static inline void mix(const Queries &of, int64_t start, const Stretch<Number> &over, int64_t size, int64_t at, const Number *next) {
    // as in `score`, enough sums at once
    constexpr int COLUMNS = MANY > 3 ? 2 : 4;
    int64_t from = 0;
    for (; from + COLUMNS * LANES <= size; from += COLUMNS * LANES) mix_columns<MANY, COLUMNS>(of, start, over, size, at, from, next);
    if (from < size) mix_columns<MANY, 2>(of, start, over, size, at, from, next);
}

template <typename From, typename To>
static inline void scaled(const From *from, To *to, int64_t size, float scale) {
    for (int64_t d = 0; d < size; d += LANES) store(to + d, load(from + d) * scale);
}
