// All layers of a decoder for the newest tokens of many samples, in one region of threads. Where there are many rows each
// thread has some of them and goes through all layers by itself; where there are few, threads share each product by its
// outputs, and meet after it. So they do with tiles, which wait for weights rather than for sums.
#include <omp.h>

#include "newest.h"
#include "norm.h"
#include "product.h"

constexpr int64_t APART = 24;  // rows of a thread that make it worth while to read all weights by itself

// laid out as multiply_part wants it; so many numbers of a row are summed by themselves
template <typename Number>
struct Weight {
    const Number *at;
    int64_t stretch;
};

// norms are null where the family has none; gates and what they are for take turns in gate_up
template <typename Number>
struct Layer {
    Weight<Number> qkv, out, gate_up, down;
    const float *attention_in, *attention_out, *mlp_in, *mlp_out, *query_norm, *key_norm;
};

struct Sizes {
    int64_t layers, hidden, heads, kv_heads, head, inner, vocab;
};

// What lies between: rows in the order of tasks, but for `last`, which has the samples'.
template <typename Number>
struct Between {
    Scratch room;
    float *stream;
    Number *entering, *qkv, *mixed, *result, *gated, *last;
    Between(const Sizes &n, int64_t rows)
        : room(rows * (n.hidden + 3 * n.hidden + 2 * (n.heads + n.kv_heads) * n.head + n.inner)), stream(room.at) {
        entering = reinterpret_cast<Number *>(stream + rows * n.hidden);
        result = entering + rows * n.hidden;
        last = result + rows * n.hidden;
        qkv = last + rows * n.hidden;
        mixed = qkv + rows * (n.heads + 2 * n.kv_heads) * n.head;
        gated = mixed + rows * n.heads * n.head;
    }
};

// logits (rows, vocab) after the tokens `ids`, whose keys and values join the cache, (layers, slots, ...); see Crowd
template <typename Number>
static void run_layers(const Layer<Number> *layers, const Weight<Number> *head, const float *norm, const Number *embedding,
                       const Sizes *sizes, const int64_t *ids, const Number *cos, const Number *sin, Number *keys, Number *values,
                       const Number *const *trunks, const int64_t *depths, const int64_t *slots, const int64_t *lengths,
                       const int64_t *order, const int64_t *tasks, int64_t num_tasks, int64_t most, int64_t rows,
                       int64_t longest, int64_t capacity, int64_t of_layer, Number *logits, float eps, int threads) {
    const Sizes n = *sizes;
    const Crowd<Number> crowd{{n.heads, n.kv_heads, n.head}, cos, sin, trunks, depths, slots, lengths, order, tasks,
                              num_tasks, most, longest, capacity};
    const int64_t attended = n.heads * n.head, deep = n.kv_heads * n.head, width = attended + 2 * deep;
    Between<Number> b(n, rows);
    const bool is_apart = rows >= APART * threads && !in_tiles<Number>();
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
        // whole tasks, so that a thread's rows lie together
        auto task_of = [&](int part) {
            int64_t task = 0;
            while (task < num_tasks && tasks[task * 2] < rows * part / all) task++;
            return task;
        };
        auto row_of = [&](int64_t task) { return task < num_tasks ? tasks[task * 2] : rows; };
        const int64_t own = task_of(me), end_own = task_of(me + 1), from = row_of(own), to = row_of(end_own);
        const Room room(crowd.n, most, longest);
        Task<Number> task(most);
        auto meet = [&] {
            if (!is_apart) {
#pragma omp barrier
            }
        };
        auto multiply = [&](const Weight<Number> &by, const Number *x, int64_t inputs, int64_t outputs, Number *y, auto is_gated) {
            const int64_t first = is_apart ? from : 0, many = is_apart ? to - from : rows, numbers = OF_A_WORD<Number>;
            Number *at = y + first * (is_gated ? outputs / 2 : outputs);
            multiply_part<is_gated>(x + first * inputs, by.at, many, inputs / numbers, by.stretch / numbers, outputs, at,
                                    is_apart ? 0 : me, is_apart ? 1 : all);
            meet();
        };
        auto enter = [&](int64_t i, const float *weight, Number *at) { normalise(b.stream + i * n.hidden, weight, n.hidden, eps, at); };
        // a block's result joins the stream, and the next block reads that
        auto leave = [&](const float *leaving, const float *entering, bool is_last) {
            for (int64_t i = from; i < to; i++) {
                Number *result = b.result + i * n.hidden;
                if (leaving != nullptr) normalise(result, leaving, n.hidden, eps, result);
                join(b.stream + i * n.hidden, result, n.hidden);
                enter(i, entering, is_last ? b.last + order[i] * n.hidden : b.entering + i * n.hidden);
            }
            meet();
        };
        const std::false_type plain;
        const std::true_type gated;
        for (int64_t i = from; i < to; i++) {
            const Number *newest = embedding + ids[order[i]] * n.hidden;
            for (int64_t j = 0; j < n.hidden; j += LANES) store(b.stream + i * n.hidden + j, load(newest + j));
            enter(i, layers[0].attention_in, b.entering + i * n.hidden);
        }
        meet();
        for (int64_t index = 0; index < n.layers; index++) {
            const Layer<Number> &layer = layers[index];
            multiply(layer.qkv, b.entering, n.hidden, width, b.qkv, plain);
            if (layer.query_norm != nullptr)
                for (int64_t i = from; i < to; i++) {
                    Number *query = b.qkv + i * width, *key = query + attended;
                    normalise(query, layer.query_norm, attended, eps, query);
                    normalise(key, layer.key_norm, deep, eps, key);
                }
            const Attending<Number> here{crowd, b.qkv, b.mixed, keys + index * of_layer, values + index * of_layer, index, true};
            here.keep(from, to);
            meet();
            if (is_apart)
                for (int64_t each = own * n.kv_heads, end = end_own * n.kv_heads; each < end; each++)
                    here.attend(each, each + 1 < end ? each + 1 : each, room, task);
            else
                here.attend_all(room, task, all);
            multiply(layer.out, b.mixed, attended, n.hidden, b.result, plain);
            leave(layer.attention_out, layer.mlp_in, false);
            multiply(layer.gate_up, b.entering, n.hidden, 2 * n.inner, b.gated, gated);
            multiply(layer.down, b.gated, n.inner, n.hidden, b.result, plain);
            const bool is_last = index + 1 == n.layers;
            leave(layer.mlp_out, is_last ? norm : layers[index + 1].attention_in, is_last);
        }
#pragma omp barrier
        multiply(*head, b.last, n.hidden, n.vocab, logits, plain);
    }
}

extern "C" {
auto *run_layers_float32 = run_layers<float>;
#ifdef __AVX512BF16__
auto *run_layers_bfloat16 = run_layers<bf16>;
#else
void *run_layers_bfloat16 = nullptr;
#endif
}
