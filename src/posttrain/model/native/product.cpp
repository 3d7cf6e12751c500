// Products of few float32 rows by a weight: it is laid out once, so that no step spends its time on that.
#include "attention.h"

constexpr int64_t NUMBERS_TOGETHER = 1 << 16;  // inputs that stay in a core's second cache while weights pass by

// out (rows, outputs) = x (rows, inputs) times a weight in blocks, (outputs / LANES, inputs, LANES). Each number is a sum over
// the inputs in their order, whatever shares the call.
static void multiply(const float *x, const float *weight, int64_t rows, int64_t inputs, int64_t outputs, float *out, int threads) {
    constexpr int64_t WIDTH = 2 * LANES;
    const int64_t fitting = NUMBERS_TOGETHER / inputs / TILE * TILE, together = fitting > TILE ? fitting : TILE;
    const int64_t strips = (outputs + WIDTH - 1) / WIDTH, parts = (rows + together - 1) / together;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t each = 0; each < parts * strips; each++) {
        const int64_t first = each / strips * together, column = each % strips * WIDTH;
        const int64_t many = rows - first < together ? rows - first : together;
        const int64_t width = outputs - column < WIDTH ? outputs - column : WIDTH;
        const Queries these{x + first * inputs, out + first * outputs, outputs, nullptr};
        const float *strip = weight + column * inputs;
        // while this strip is multiplied memory brings the next
        fetch(strip + WIDTH * inputs, WIDTH * inputs);
        in_tiles(many, [&](auto tile, int64_t start) {
            score<tile>(these, start, Stretch<float>{strip, nullptr, width}, inputs, column, false);
        });
    }
}

extern "C" {
auto *multiply_float32 = multiply;
}
