// The emulated kernels for other languages, called as a driver is: a name, a launch, pointers to the arguments.

#include <mutex>

#include "registry.h"

namespace {

std::mutex one_at_a_time;

}  // namespace

extern "C" {

// Threads of a block and bytes of dynamic shared memory (0 where the caller computes them). False: no such kernel.
bool emulated_kernel(const char* name, unsigned* threads, std::size_t* shared) {
    const auto found = emulate::kernels().find(name);
    if (found == emulate::kernels().end()) return false;
    *threads = found->second.threads;
    *shared = found->second.shared;
    return true;
}

// Runs a kernel to its end; `sizes` are those of the arguments. False: no such kernel, or other arguments. What a
// device would leave undefined (a stray access, a barrier that not all reach) ends the process with a message.
bool emulated_launch(const char* name, unsigned blocks, std::size_t shared, void** arguments, const std::size_t* sizes,
                     std::size_t count) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    const auto found = emulate::kernels().find(name);
    if (found == emulate::kernels().end()) return false;
    if (found->second.sizes != std::vector<std::size_t>(sizes, sizes + count)) return false;
    emulate::launch(name, blocks, found->second.threads, shared, [&] { found->second.call(arguments); });
    return true;
}

// 0, 1: warps in order, copies late or early; 2, 3: in reverse; above: shuffled.
void emulated_schedule(unsigned number) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    emulate::machine.schedule = {number / 2, number % 2 ? emulate::Copies::early : emulate::Copies::late};
}

}
