// Root-mean-square normalisation of one row (arXiv:1910.07467).
#pragma once
#include <cmath>

#include "vector.h"

template <typename In>
static inline float inverse_root_mean_square(const In *x, int64_t size, float eps) {
    vf squares{};
    for (int64_t i = 0; i < size; i += LANES) squares += load(x + i) * load(x + i);
    return 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps);
}

// x / sqrt(mean(x^2) + eps) * weight, or x itself without a weight; `out` may be x
template <typename In, typename Out>
static inline void normalise(const In *x, const float *weight, int64_t size, float eps, Out *out) {
    const float by = weight == nullptr ? 1.0f : inverse_root_mean_square(x, size, eps);
    for (int64_t i = 0; i < size; i += LANES)
        store(out + i, weight == nullptr ? load(x + i) : load(x + i) * by * load(weight + i));
}

// x gets y added
template <typename Number>
static inline void join(float *x, const Number *y, int64_t size) {
    for (int64_t i = 0; i < size; i += LANES) store(x + i, load(x + i) + load(y + i));
}
