// Drawing a token from a row of logits: from their softmax by a race of all tokens, or the likeliest.
#pragma once
#include <cmath>

#include "vector.h"

constexpr int BLOCK = 256;  // tokens whose probabilities are summed in single precision

template <typename Number>
static inline float peak_of(const Number *logits, int64_t size, float by) {
    vf peaks = splat(MINUS_INFINITY);
    for (int64_t i = 0; i < size; i += LANES) peaks = larger(load(logits + i) * by, peaks);
    return largest(peaks);
}

struct Drawn {
    int64_t id;
    float logprob;  // nats
};

constexpr uint32_t GOLDEN = 0x9e3779b9u;

// A number in (0, 1) for each of LANES tokens from x = GOLDEN * token + the key's lower half: a multiplicative mix of 32
// bits, the constants of prospector's `lowbias32`, with the upper half between its rounds.
static inline vf mixed(vu x, uint32_t upper) {
    x = (x ^ x >> 16) * 0x21f0aaadu;
    x = (x ^ x >> 15 ^ upper) * 0x735a2d97u;
    x = (x ^ x >> 15) >> 1;
    const vf u = (__builtin_convertvector(reinterpret_cast<vi &>(x), vf) + 0.5f) * 0x1p-31f, below_one = splat(0x1.fffffep-1f);
    return choose(u < below_one, u, below_one);
}

// From the softmax at the temperature: token i, with probability p_i, arrives after -log(1 - u_i) / p_i, and the first to
// arrive is drawn. As -log(1 - u) is at least u, few tokens can be the first and need the logarithm.
template <typename Number>
static inline Drawn draw_by(const Number *from, uint64_t key, int64_t size, float temperature) {
    const float by = 1.0f / temperature, peak = peak_of(from, size, by);
    double total = 0.0;
    float first = -MINUS_INFINITY, own = 0.0f;
    int64_t id = 0;
    vu bits;
    for (int lane = 0; lane < LANES; lane++) bits[lane] = GOLDEN * lane + static_cast<uint32_t>(key);
    for (int64_t start = 0; start < size; start += BLOCK) {
        const int64_t end = start + BLOCK < size ? start + BLOCK : size;
        vf sums{};
        for (int64_t i = start; i < end; i += LANES, bits += GOLDEN * LANES) {
            const vf mass = exponential(load(from + i) * by - peak), u = mixed(bits, key >> 32);
            sums += mass;
            const vi may = u < mass * first;
            if (!any(may)) continue;
            for (int lane = 0; lane < LANES; lane++) {
                const float arrives = may[lane] ? -std::log1p(-u[lane]) / mass[lane] : first;
                if (arrives < first) first = arrives, own = mass[lane], id = i + lane;
            }
        }
        total += sum(sums);
    }
    return {id, static_cast<float>(std::log(own / total))};
}

// the first of the likeliest, with its log-probability at temperature 1
template <typename Number>
static inline Drawn likeliest_of(const Number *from, int64_t size) {
    const float peak = peak_of(from, size, 1.0f);
    double total = 0.0;
    for (int64_t start = 0; start < size; start += BLOCK) {
        const int64_t end = start + BLOCK < size ? start + BLOCK : size;
        vf sums{};
        for (int64_t i = start; i < end; i += LANES) sums += exponential(load(from + i) - peak);
        total += sum(sums);
    }
    int64_t id = 0;
    while (id + 1 < size && !(widen(from[id]) == peak)) id++;
    return {id, -static_cast<float>(std::log(total))};
}
