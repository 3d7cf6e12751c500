// Products of few float32 rows by a weight: it is laid out once, so that no step spends its time on that.
#include "attention.h"

// Rows whose sums, two vectors each, stay in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 12;
#else
constexpr int ROWS = 6;
#endif
constexpr int64_t NUMBERS_TOGETHER = 1 << 17;  // inputs that stay in a core's second cache while weights pass by

// MANY rows times the strip of VECTORS x LANES outputs at `strip`. After each LANES inputs memory is asked for `lines` more
// lines of the strip at `ahead`, which is the next: asked for at once they would have to wait for each other.
template <int MANY, int VECTORS>
static inline void multiply_strip(const float *x, int64_t inputs, const float *strip, const float *&ahead, int64_t lines,
                                  float *out, int64_t outputs) {
    vf sums[VECTORS][MANY] = {};
    for (int64_t d = 0; d < inputs; ahead += lines * LANES) {
        fetch(ahead, lines * LANES);
        for (const int64_t stop = d + LANES < inputs ? d + LANES : inputs; d < stop; d++) {
            vf weight[VECTORS];
            for (int v = 0; v < VECTORS; v++) weight[v] = load(strip + (v * inputs + d) * LANES);
            for (int q = 0; q < MANY; q++)
                for (int v = 0; v < VECTORS; v++) sums[v][q] = add_product(sums[v][q], weight[v], x[q * inputs + d]);
        }
    }
    for (int q = 0; q < MANY; q++)
        for (int v = 0; v < VECTORS; v++) store(out + q * outputs + v * LANES, sums[v][q]);
}

// out (rows, outputs) = x (rows, inputs) times a weight in blocks, (outputs / LANES, inputs, LANES). Each number is a sum over
// the inputs in their order, whatever shares the call.
static void multiply(const float *x, const float *weight, int64_t rows, int64_t inputs, int64_t outputs, float *out, int threads) {
    constexpr int64_t WIDTH = 2 * LANES;
    const int64_t fitting = NUMBERS_TOGETHER / inputs / ROWS * ROWS, together = fitting > ROWS ? fitting : ROWS;
    const int64_t strips = (outputs + WIDTH - 1) / WIDTH, parts = (rows + together - 1) / together;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t each = 0; each < parts * strips; each++) {
        const int64_t first = each / strips * together, column = each % strips * WIDTH;
        const int64_t many = rows - first < together ? rows - first : together, tiles = (many + ROWS - 1) / ROWS;
        const float *strip = weight + column * inputs, *ahead = strip + WIDTH * inputs;
        in_tiles<ROWS>(many, [&](auto tile, int64_t start) {
            const float *rows_here = x + (first + start) * inputs;
            float *to = out + (first + start) * outputs + column;
            if (outputs - column >= WIDTH)
                multiply_strip<tile, 2>(rows_here, inputs, strip, ahead, (WIDTH + tiles - 1) / tiles, to, outputs);
            else
                multiply_strip<tile, 1>(rows_here, inputs, strip, ahead, 0, to, outputs);
        });
    }
}

extern "C" {
auto *multiply_float32 = multiply;
}
