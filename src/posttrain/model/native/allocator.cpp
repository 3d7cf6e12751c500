// PyTorch's blocks of memory, placed so that a freed one fits the next of its size.
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <cstdint>
#include <cstdlib>

constexpr std::size_t LINE = 64;                     // bytes, of the cache, that blocks begin with
constexpr std::size_t HEADER = sizeof(std::size_t);  // what glibc keeps before a block
constexpr std::size_t SMALL = 4096;                  // bytes: such blocks are many, and their holes do not matter

// so large that what follows begins with a line too, if it is as large
static std::size_t whole_lines(std::size_t bytes) {
    const std::size_t whole = (bytes + HEADER + LINE - 1) / LINE * LINE - HEADER;
    return whole < bytes ? bytes : whole;
}

// For an aligned block glibc looks for a hole that is larger by the alignment and more, so a hole that a block left among
// others never takes the next of its size. Its plain malloc does, and mostly finds a line's beginning: blocks are whole lines.
static void *in_a_hole(std::size_t bytes) {
    void *found = std::malloc(whole_lines(bytes));
    if (reinterpret_cast<std::uintptr_t>(found) % LINE == 0) return found;
    std::free(found);
    return nullptr;
}

static void give_back(void *block) {
    if (block == nullptr) return;
    c10::profiledCPUMemoryReporter().Delete(block);  // so that PyTorch's profiler counts them
    c10::free_cpu(block);
}

struct Fitting final : c10::Allocator {
    c10::DataPtr allocate(std::size_t bytes) override {
        void *found = bytes < SMALL ? nullptr : in_a_hole(bytes);
        if (found == nullptr) found = c10::alloc_cpu(bytes < SMALL ? bytes : whole_lines(bytes));  // errors are PyTorch's
        c10::profiledCPUMemoryReporter().New(found, bytes);
        return {found, found, &give_back, c10::Device(c10::kCPU)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
    void copy_data(void *to, const void *from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

extern "C" void fit_blocks() {
    static Fitting *fitting = new Fitting;  // outlives whatever is freed at the very end
    c10::SetCPUAllocator(fitting);
}
