// Drawing one token for each row of logits.
#include "sampling.h"

// by 64 random bits each, or without them (temperature 0) the likeliest
template <typename Number>
static void draw(const Number *logits, const int64_t *noise, int64_t *ids, float *logprobs, int64_t rows, int64_t size,
                 float temperature, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const Number *from = logits + row * size;
        const Drawn drawn = temperature > 0 ? draw_by(from, noise[row], size, temperature) : likeliest_of(from, size);
        ids[row] = drawn.id;
        logprobs[row] = drawn.logprob;
    }
}

KERNEL(draw)
