// The memory-bound parts of a decoder, each in one pass over its data. Lengths are multiples of 16 lanes.
// Rows are shared out in fixed stretches, so a sum over rows depends on the number of threads and on nothing else.
#include <cmath>
#include <vector>

#include "vector.h"

template <typename In>
static inline float inverse_root_mean_square(const In *x, int64_t size, float eps) {
    vf squares{};
    for (int64_t i = 0; i < size; i += LANES) squares += load(x + i) * load(x + i);
    return 1.0f / std::sqrt(sum(squares) / size + eps);
}

template <typename In, typename Out>
static void rms_norm(const In *x, const float *weight, Out *out, int64_t rows, int64_t size, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 3)
    for (int64_t row = 0; row < rows; row++) {
        const In *from = x + row * size;
        float scale = inverse_root_mean_square(from, size, eps);
        for (int64_t i = 0; i < size; i += LANES)
            store(out + row * size + i, load(from + i) * scale * load(weight + i));
    }
}

// x, float32, gets y added in place; `out` gets the norm of the sum
static void add_rms_norm(float *x, const bf16 *y, const float *weight, bf16 *out, int64_t rows, int64_t size, float eps,
                         int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 3)
    for (int64_t row = 0; row < rows; row++) {
        float *at = x + row * size;
        for (int64_t i = 0; i < size; i += LANES) store(at + i, load(at + i) + load(y + row * size + i));
        float scale = inverse_root_mean_square(at, size, eps);
        for (int64_t i = 0; i < size; i += LANES)
            store(out + row * size + i, load(at + i) * scale * load(weight + i));
    }
}

template <typename In, typename Out>
static void rms_norm_backward(const In *x, const float *weight, const Out *grad, In *grad_x, float *grad_weight,
                              int64_t rows, int64_t size, float eps, int threads) {
    std::vector<float> parts(size * threads, 0.0f);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++) {
        float *own = parts.data() + part * size;
        for (int64_t row = rows * part / threads; row < rows * (part + 1) / threads; row++) {
            const In *from = x + row * size;
            const Out *g = grad + row * size;
            float scale = inverse_root_mean_square(from, size, eps);
            vf products{};
            for (int64_t i = 0; i < size; i += LANES)
                products += load(g + i) * load(weight + i) * load(from + i);
            float inner = sum(products) * scale * scale / size;
            for (int64_t i = 0; i < size; i += LANES) {
                vf normed = load(from + i) * scale, got = load(g + i);
                store(own + i, load(own + i) + got * normed);
                store(grad_x + row * size + i, (got * load(weight + i) - load(from + i) * inner) * scale);
            }
        }
    }
    for (int64_t i = 0; i < size; i++) {
        grad_weight[i] = 0.0f;
        for (int part = 0; part < threads; part++) grad_weight[i] += parts[part * size + i];
    }
}

// a row of `out` gets silu(gate) * up; rows of the two inputs lie `stride` apart
static void swiglu(const bf16 *gate, const bf16 *up, int64_t stride, bf16 *out, int64_t rows, int64_t size,
                   int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 3)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < size; i += LANES) {
            vf g = load(gate + row * stride + i);
            store(out + row * size + i, g / (exponential(-g) + 1.0f) * load(up + row * stride + i));
        }
}

static void swiglu_backward(const bf16 *gate, const bf16 *up, const bf16 *grad, bf16 *grad_gate, bf16 *grad_up,
                            int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < size; i += LANES) {
        vf g = load(gate + i), u = load(up + i), got = load(grad + i);
        vf gated = 1.0f / (exponential(-g) + 1.0f);
        store(grad_up + i, got * g * gated);
        store(grad_gate + i, got * u * gated * (g * (1.0f - gated) + 1.0f));
    }
}

// rows of x lie `stride` apart, each `heads` heads of two halves; `sign` -1 turns back
static void rotary(const bf16 *x, int64_t stride, const bf16 *cos, const bf16 *sin, bf16 *out, int64_t rows,
                   int64_t heads, int64_t half, float sign, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 3)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t head = 0; head < heads; head++) {
            const bf16 *from = x + row * stride + head * 2 * half;
            bf16 *to = out + (row * heads + head) * 2 * half;
            for (int64_t i = 0; i < half; i += LANES) {
                vf a = load(from + i), b = load(from + half + i);
                vf c = load(cos + row * half + i), s = load(sin + row * half + i) * sign;
                store(to + i, a * c - b * s);
                store(to + half + i, b * c + a * s);
            }
        }
}

// normaliser of each row of logits / temperature, and the target's log-probability
static void log_softmax(const bf16 *logits, const int64_t *targets, float *normalisers, float *chosen, int64_t rows,
                        int64_t size, float temperature, int threads) {
    const int64_t block = 1024;
    const float by = 1.0f / temperature;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *from = logits + row * size;
        vf peaks = splat(MINUS_INFINITY);
        for (int64_t i = 0; i < size; i += LANES) peaks = larger(load(from + i) * by, peaks);
        float peak = largest(peaks);
        double total = 0.0;
        for (int64_t start = 0; start < size; start += block) {
            vf mass{};
            int64_t end = start + block < size ? start + block : size;
            for (int64_t i = start; i < end; i += LANES) mass += exponential(load(from + i) * by - peak);
            total += sum(mass);
        }
        normalisers[row] = peak + static_cast<float>(std::log(total));
        chosen[row] = widen(from[targets[row]]) * by - normalisers[row];
    }
}

// in place: logits become d loss / d logits, (onehot - softmax) * grad / temperature
static void log_softmax_backward(bf16 *logits, const int64_t *targets, const float *normalisers, const float *grad,
                                 int64_t rows, int64_t size, float temperature, int threads) {
    const float by = 1.0f / temperature;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        bf16 *at = logits + row * size;
        float scale = grad[row] * by;
        vf one{};
        one[0] = widen(at[targets[row]]) * by - normalisers[row];
        float target = (1.0f - exponential(one)[0]) * scale;
        for (int64_t i = 0; i < size; i += LANES)
            store(at + i, exponential(load(at + i) * by - normalisers[row]) * -scale);
        vf last = splat(target);
        bf16 rounded[LANES];
        store(rounded, last);
        at[targets[row]] = rounded[0];
    }
}

extern "C" {
#define NORM(name, In, Out)                                                                                        \
    void rms_norm_##name(const In *x, const float *w, Out *out, int64_t rows, int64_t size, float eps, int t) {    \
        rms_norm(x, w, out, rows, size, eps, t);                                                                   \
    }                                                                                                              \
    void rms_norm_backward_##name(const In *x, const float *w, const Out *g, In *gx, float *gw, int64_t rows,      \
                                  int64_t size, float eps, int t) {                                                \
        rms_norm_backward(x, w, g, gx, gw, rows, size, eps, t);                                                    \
    }
NORM(float32_bfloat16, float, bf16)
NORM(bfloat16_bfloat16, bf16, bf16)
#undef NORM
void add_rms_norm_bfloat16(float *x, const bf16 *y, const float *w, bf16 *out, int64_t rows, int64_t size, float eps,
                           int t) {
    add_rms_norm(x, y, w, out, rows, size, eps, t);
}
void swiglu_bfloat16(const bf16 *g, const bf16 *u, int64_t stride, bf16 *out, int64_t rows, int64_t size, int t) {
    swiglu(g, u, stride, out, rows, size, t);
}
void swiglu_backward_bfloat16(const bf16 *g, const bf16 *u, const bf16 *grad, bf16 *gg, bf16 *gu, int64_t size, int t) {
    swiglu_backward(g, u, grad, gg, gu, size, t);
}
void rotary_bfloat16(const bf16 *x, int64_t stride, const bf16 *cos, const bf16 *sin, bf16 *out, int64_t rows,
                     int64_t heads, int64_t half, float sign, int t) {
    rotary(x, stride, cos, sin, out, rows, heads, half, sign, t);
}
void log_softmax_bfloat16(const bf16 *logits, const int64_t *targets, float *normalisers, float *chosen, int64_t rows,
                          int64_t size, float temperature, int t) {
    log_softmax(logits, targets, normalisers, chosen, rows, size, temperature, t);
}
void log_softmax_backward_bfloat16(bf16 *logits, const int64_t *targets, const float *normalisers, const float *grad,
                                   int64_t rows, int64_t size, float temperature, int t) {
    log_softmax_backward(logits, targets, normalisers, grad, rows, size, temperature, t);
}
}
