// Products of few rows by a weight in blocks: (outputs / LANES, words, LANES), where a row of inputs has so many words.
#pragma once
#include "attention.h"
#include "tiles.h"
#include "words.h"

// Rows whose sums, two vectors each, stay in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 12;
#else
constexpr int ROWS = 6;
#endif
constexpr int64_t WIDTH = 2 * LANES;  // outputs of a strip

// MANY rows times the strip of VECTORS x LANES outputs at `strip`. After each LANES inputs memory is asked for `lines` more
// lines of the strip at `ahead`, which is the next: asked for at once they would have to wait for each other.
template <int MANY, int VECTORS, bool GATED, typename Number>
static inline void multiply_strip(const float *x, int64_t words, int64_t stretch, const float *strip, const float *&ahead,
                                  int64_t lines, Number *out, int64_t outputs) {
    vf totals[VECTORS][MANY] = {};
    for (int64_t d = 0; d < words;) {
        vf sums[VECTORS][MANY] = {};
        for (const int64_t end = d + stretch < words ? d + stretch : words; d < end; ahead += lines * LANES) {
            fetch(ahead, lines * LANES);
            for (const int64_t stop = d + LANES < end ? d + LANES : end; d < stop; d++) {
                vf weight[VECTORS];
                for (int v = 0; v < VECTORS; v++) weight[v] = load(strip + (v * words + d) * LANES);
                for (int q = 0; q < MANY; q++)
                    for (int v = 0; v < VECTORS; v++) sums[v][q] = add_words(sums[v][q], weight[v], x[q * words + d], out);
            }
        }
        for (int q = 0; q < MANY; q++)
            for (int v = 0; v < VECTORS; v++) totals[v][q] += sums[v][q];
    }
    for (int q = 0; q < MANY; q++)
        if constexpr (GATED)
            put(out + q * outputs, gated(rounded<Number>(totals[0][q]), rounded<Number>(totals[1][q])));
        else
            for (int v = 0; v < VECTORS; v++) put(out + q * outputs + v * LANES, totals[v][q]);
}

// out (rows, outputs) = x (rows, inputs) times a weight, of which this is part `part` of `parts`, by outputs. Each number is
// a sum over the inputs in their order, whatever shares the call; `stretch` words are summed by themselves and then join what
// is before them. GATED: LANES gates and the LANES numbers they are for take turns among the outputs, and what comes out,
// half as wide, is their products.
template <bool GATED, typename Number>
static inline void multiply_part(const Number *inputs, const Number *weights, int64_t rows, int64_t words, int64_t stretch,
                                 int64_t outputs, Number *out, int part, int parts) {
#ifdef TILE_SIDE
    if constexpr (OF_A_WORD<Number> == 2)
        if (in_tiles<Number>()) return multiply_in_tiles<GATED>(inputs, weights, rows, words, outputs, out, part, parts);
#endif
    const float *x = reinterpret_cast<const float *>(inputs), *weight = reinterpret_cast<const float *>(weights);
    const int64_t strips = (outputs + WIDTH - 1) / WIDTH, turns = (rows * words + WORDS_TOGETHER - 1) / WORDS_TOGETHER;
    const int64_t together = (rows + turns * ROWS - 1) / (turns * ROWS) * ROWS;
    for (int64_t first = 0; first < rows; first += together) {
        const int64_t many = rows - first < together ? rows - first : together, tiles = (many + ROWS - 1) / ROWS;
        for (int64_t column = strips * part / parts * WIDTH; column < strips * (part + 1) / parts * WIDTH; column += WIDTH) {
            const float *strip = weight + column * words, *ahead = strip + WIDTH * words;
            in_tiles<ROWS>(many, [&](auto tile, int64_t start) {
                const float *rows_here = x + (first + start) * words;
                const int64_t across = GATED ? outputs / 2 : outputs, lines = (WIDTH + tiles - 1) / tiles;
                Number *to = out + (first + start) * across + (GATED ? column / 2 : column);
                if (outputs - column >= WIDTH)
                    multiply_strip<tile, 2, GATED>(rows_here, words, stretch, strip, ahead, lines, to, across);
                else if constexpr (!GATED)
                    multiply_strip<tile, 1, false>(rows_here, words, stretch, strip, ahead, 0, to, across);
            });
        }
    }
}
