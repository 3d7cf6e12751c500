// Drawing a token from a row of logits: from their softmax by one uniform number, or the likeliest.
#pragma once
#include <cmath>

#include "vector.h"

constexpr int BLOCK = 256;  // tokens whose probabilities are summed before one of them is looked for

template <typename Number>
static inline float peak_of(const Number *logits, int64_t size, float by) {
    vf peaks = splat(MINUS_INFINITY);
    for (int64_t i = 0; i < size; i += LANES) peaks = larger(load(logits + i) * by, peaks);
    return largest(peaks);
}

template <typename Number>
static inline float block_mass(const Number *logits, int64_t start, int64_t size, float by, float peak) {
    const int64_t end = start + BLOCK < size ? start + BLOCK : size;
    vf mass{};
    for (int64_t i = start; i < end; i += LANES) mass += exponential(load(logits + i) * by - peak);
    return sum(mass);
}

struct Drawn {
    int64_t id;
    float logprob;  // nats
};

// from the softmax at the temperature, by a uniform number in [0, 1)
template <typename Number>
static inline Drawn draw_by(const Number *from, float uniform, int64_t size, float temperature) {
    const float by = 1.0f / temperature, peak = peak_of(from, size, by);
    double total = 0.0;
    for (int64_t start = 0; start < size; start += BLOCK) total += block_mass(from, start, size, by, peak);
    // the block where the running sum passes the target, or the last with any mass if rounding carries it past
    const double target = uniform * total;
    double before = 0.0, reached = 0.0;
    int64_t chosen = 0;
    for (int64_t start = 0; start < size; start += BLOCK) {
        const float mass = block_mass(from, start, size, by, peak);
        if (mass > 0.0f) chosen = start, before = reached;
        reached += mass;
        if (reached > target) break;
    }
    const int64_t end = chosen + BLOCK < size ? chosen + BLOCK : size;
    int64_t id = chosen;
    double own = 0.0;
    reached = before;
    for (int64_t start = chosen; start < end && reached <= target; start += LANES) {
        const vf mass = exponential(load(from + start) * by - peak);
        for (int lane = 0; lane < LANES && reached <= target; lane++)
            if (mass[lane] > 0.0f) id = start + lane, own = mass[lane], reached += own;
    }
    return {id, static_cast<float>(std::log(own / total))};
}

// the first of the likeliest, with its log-probability at temperature 1
template <typename Number>
static inline Drawn likeliest_of(const Number *from, int64_t size) {
    const float peak = peak_of(from, size, 1.0f);
    double total = 0.0;
    for (int64_t start = 0; start < size; start += BLOCK) total += block_mass(from, start, size, 1.0f, peak);
    int64_t id = 0;
    while (id + 1 < size && !(widen(from[id]) == peak)) id++;
    return {id, -static_cast<float>(std::log(total))};
}
