// The memory-bound parts of a decoder, each in one pass over its data. Lengths are multiples of 16 lanes.
// Rows are shared out in fixed stretches, so a sum over rows depends on the number of threads and on nothing else.
#include <vector>

#include "norm.h"

template <typename In, typename Out>
static void rms_norm(const In *x, const float *weight, Out *out, int64_t rows, int64_t size, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 3)
    for (int64_t row = 0; row < rows; row++) normalise(x + row * size, weight, size, eps, out + row * size);
}

// x, float32, gets y added in place; `out` gets the norm of the sum
template <typename Number>
static void add_rms_norm(float *x, const Number *y, const float *weight, Number *out, int64_t rows, int64_t size, float eps,
                         int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 3)
    for (int64_t row = 0; row < rows; row++) {
        join(x + row * size, y + row * size, size);
        normalise(x + row * size, weight, size, eps, out + row * size);
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
template <typename Number>
static void swiglu(const Number *gate, const Number *up, int64_t stride, Number *out, int64_t rows, int64_t size,
                   int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 3)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < size; i += LANES)
            store(out + row * size + i, gated(load(gate + row * stride + i), load(up + row * stride + i)));
}

template <typename Number>
static void swiglu_backward(const Number *gate, const Number *up, const Number *grad, Number *grad_gate, Number *grad_up,
                            int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < size; i += LANES) {
        vf g = load(gate + i), u = load(up + i), got = load(grad + i);
        vf open = 1.0f / (exponential(-g) + 1.0f);
        store(grad_up + i, got * g * open);
        store(grad_gate + i, got * u * open * (g * (1.0f - open) + 1.0f));
    }
}

// rows of x lie `stride` apart, each `heads` heads of two halves; `sign` -1 turns back
template <typename Number>
static void rotary(const Number *x, int64_t stride, const Number *cos, const Number *sin, Number *out, int64_t rows,
                   int64_t heads, int64_t half, float sign, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 3)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t head = 0; head < heads; head++) {
            const Number *from = x + row * stride + head * 2 * half;
            Number *to = out + (row * heads + head) * 2 * half;
            for (int64_t i = 0; i < half; i += LANES) {
                vf a = load(from + i), b = load(from + half + i);
                vf c = load(cos + row * half + i), s = load(sin + row * half + i) * sign;
                store(to + i, a * c - b * s);
                store(to + half + i, b * c + a * s);
            }
        }
}

// normaliser of each row of logits / temperature, and the target's log-probability
template <typename Number>
static void log_softmax(const Number *logits, const int64_t *targets, float *normalisers, float *chosen, int64_t rows,
                        int64_t size, float temperature, int threads) {
    const int64_t block = 1024;
    const float by = 1.0f / temperature;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const Number *from = logits + row * size;
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
template <typename Number>
static void log_softmax_backward(Number *logits, const int64_t *targets, const float *normalisers, const float *grad,
                                 int64_t rows, int64_t size, float temperature, int threads) {
    const float by = 1.0f / temperature;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        Number *at = logits + row * size;
        float scale = grad[row] * by;
        vf one{};
        one[0] = widen(at[targets[row]]) * by - normalisers[row];
        float target = (1.0f - exponential(one)[0]) * scale;
        for (int64_t i = 0; i < size; i += LANES)
            store(at + i, exponential(load(at + i) * by - normalisers[row]) * -scale);
        narrow(at + targets[row], target);
    }
}

extern "C" {
auto *rms_norm_float32_float32 = rms_norm<float, float>;
auto *rms_norm_float32_bfloat16 = rms_norm<float, bf16>;
auto *rms_norm_bfloat16_bfloat16 = rms_norm<bf16, bf16>;
auto *rms_norm_backward_float32_float32 = rms_norm_backward<float, float>;
auto *rms_norm_backward_float32_bfloat16 = rms_norm_backward<float, bf16>;
auto *rms_norm_backward_bfloat16_bfloat16 = rms_norm_backward<bf16, bf16>;
}
KERNEL(add_rms_norm)
KERNEL(swiglu)
KERNEL(swiglu_backward)
KERNEL(rotary)
KERNEL(log_softmax)
KERNEL(log_softmax_backward)
