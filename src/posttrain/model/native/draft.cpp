// Tokens drawn ahead with a copy of the model whose matrices are 8-bit: guesses that the model itself then checks, all in
// one pass. One token at a time reads every weight, so half of the bytes are half of the time.
#include "newest.h"
#include "norm.h"
#include "sampling.h"

constexpr int ROWS = 4;           // of a matrix, multiplied together
constexpr int AHEAD_BYTES = 6144;  // fetched before they are needed: one reader alone waits for memory

// (rows, columns), each row to be multiplied by its scale. ROWS of them lie together, LANES columns of each in turn, so that
// memory is read from one end to the other.
struct Matrix {
    const int8_t *weights;
    const float *scales;
};

// norms are null where the family has none
struct Layer {
    Matrix qkv, out, gate_up, down;
    const float *attention_in, *attention_out, *mlp_in, *mlp_out, *query_norm, *key_norm;
};

struct Sizes {
    int64_t layers, hidden, heads, kv_heads, head, inner, vocab, slots, capacity;
};

// rows start .. start + ROWS of the product by x
static inline void dot(const Matrix &by, int64_t start, const float *x, int64_t columns, float *found) {
    vf sums[ROWS] = {};
    const int8_t *from = by.weights + start * columns;
    for (int64_t i = 0; i < columns; i += LANES) {
        __builtin_prefetch(from + i * ROWS + AHEAD_BYTES, 0, 2);
        const vf own = load(x + i);
        for (int r = 0; r < ROWS; r++) sums[r] += load(from + i * ROWS + r * LANES) * own;
    }
    for (int r = 0; r < ROWS; r++) found[r] = sum(sums[r]) * by.scales[start + r];
}

// y = by x, shared among the threads, which meet at the end
template <typename To>
static void multiply(const Matrix &by, int64_t rows, const float *x, int64_t columns, To *y) {
#pragma omp for schedule(static)
    for (int64_t start = 0; start < rows; start += ROWS) {
        float found[ROWS];
        dot(by, start, x, columns, found);
        for (int r = 0; r < ROWS && start + r < rows; r++) narrow(y + start + r, found[r]);
    }
}

// silu(gate x) * (up x); two rows of gate and the same two of up lie together
static void multiply_gated(const Matrix &by, int64_t inner, const float *x, int64_t columns, float *y) {
#pragma omp for schedule(static)
    for (int64_t start = 0; start < inner; start += ROWS / 2) {
        float found[ROWS];
        dot(by, 2 * start, x, columns, found);
        for (int r = 0; r < ROWS / 2; r++) y[start + r] = found[r] / (1.0f + std::exp(-found[r])) * found[ROWS / 2 + r];
    }
}

// `count` tokens after `first`, the newest of slot 0 at place length - 1; ids[i] is drawn by noise[i], or the likeliest
// if the temperature is 0. embedding is (vocab, hidden); cos and sin (count, head / 2) from that place on; keys and values
// are the whole cache, (layers, slots, ...), whose places from length - 1 on are written, `depth` tokens fewer: these lie in
// the trunk, as attend_newest has it.
template <typename Number>
static void draft_tokens(const Layer *layers, const Matrix *head, const float *norm, const Number *embedding,
                         const Sizes *sizes, const Number *cos, const Number *sin, Number *keys, Number *values,
                         const Number *trunk_keys, const Number *trunk_values, int64_t depth, const int64_t *noise,
                         int64_t first, int64_t length, int64_t count, int64_t *ids, float temperature, float eps, int threads) {
    const Sizes n = *sizes;
    const int64_t width = (n.heads + 2 * n.kv_heads) * n.head, attended = n.heads * n.head, deep = n.kv_heads * n.head;
    const int64_t of_layer = n.slots * n.kv_heads * n.capacity * n.head;
    Scratch gated(n.inner), added(n.hidden), rest(width + attended + n.vocab);
    Number *qkv = reinterpret_cast<Number *>(rest.at), *mixed = qkv + width, *logits = mixed + attended;
#pragma omp parallel num_threads(threads)
    {
        // every thread keeps the residual stream, so that only products are waited for
        Scratch stream(n.hidden), entering(n.hidden > attended ? n.hidden : attended);
        const Heads heads{n.heads, n.kv_heads, n.head};
        const Room room(heads, 1, length + count);
        for (int64_t i = 0; i < count; i++) {
            const Number *newest = embedding + (i == 0 ? first : ids[i - 1]) * n.hidden;
            for (int64_t j = 0; j < n.hidden; j += LANES) store(stream.at + j, load(newest + j));
            auto add = [&](const float *leaving) {
                normalise(added.at, leaving, n.hidden, eps, entering.at);
                join(stream.at, entering.at, n.hidden);
            };
            for (int64_t index = 0; index < n.layers; index++) {
                const Layer &layer = layers[index];
                normalise(stream.at, layer.attention_in, n.hidden, eps, entering.at);
                multiply(layer.qkv, width, entering.at, n.hidden, qkv);
                if (layer.query_norm != nullptr) {
#pragma omp single
                    {
                        normalise(qkv, layer.query_norm, attended, eps, qkv);
                        normalise(qkv + attended, layer.key_norm, deep, eps, qkv + attended);
                    }
                }
#pragma omp for schedule(static)
                for (int64_t head = 0; head < n.kv_heads; head++) {
                    const int64_t at = index * of_layer + head * n.capacity * n.head, angle = i * n.head / 2;
                    const int64_t shared = (index * n.kv_heads + head) * depth * n.head;
                    const bool has = depth > 0;
                    const Token<Number> token{qkv, cos + angle, sin + angle, mixed};
                    const Place<Number> place{has ? trunk_keys + shared : nullptr, has ? trunk_values + shared : nullptr,
                                              keys + at, values + at, depth, length + i};
                    keep_newest(token, place, heads, head);
                    attend_newest_at(&token, &place, 1, heads, head, room, place);
                }
                for (int64_t j = 0; j < attended; j += LANES) store(entering.at + j, load(mixed + j));
                multiply(layer.out, n.hidden, entering.at, attended, added.at);
                add(layer.attention_out);
                normalise(stream.at, layer.mlp_in, n.hidden, eps, entering.at);
                multiply_gated(layer.gate_up, n.inner, entering.at, n.hidden, gated.at);
                multiply(layer.down, n.hidden, gated.at, n.inner, added.at);
                add(layer.mlp_out);
            }
            normalise(stream.at, norm, n.hidden, eps, entering.at);
            multiply(*head, n.vocab, entering.at, n.hidden, logits);
#pragma omp single
            ids[i] = (temperature > 0 ? draw_by(logits, noise[i], n.vocab, temperature) : likeliest_of(logits, n.vocab)).id;
        }
    }
}

KERNEL(draft_tokens)
