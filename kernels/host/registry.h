// Kernels by name, as a driver finds them in a module, with the launch each one wants.
#pragma once

#include <map>
#include <string>
#include <type_traits>

#include "emulate.h"

namespace emulate {

struct Kernel {
    unsigned threads;
    std::size_t shared;                // bytes of dynamic shared memory; 0 where the caller computes them
    std::vector<std::size_t> sizes;    // of the arguments
    std::function<void(void**)> call;  // with pointers to the arguments
};

inline std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

template <typename... Args, std::size_t... I>
void call_with(void (*kernel)(Args...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<Args>*>(args[I])...);
}

struct Registration {
    template <typename... Args>
    Registration(const char* name, void (*kernel)(Args...), unsigned threads, std::size_t shared) {
        kernels()[name] = {threads, shared, {sizeof(Args)...}, [kernel](void** args) {
                               call_with(kernel, args, std::index_sequence_for<Args...>{});
                           }};
    }
};

// Launches by name with `shared` bytes of dynamic shared memory; the arguments must have the sizes that the kernel
// declares.
template <typename... Args>
void launch_named(const std::string& name, unsigned blocks, std::size_t shared, Args... args) {
    machine.name = name.c_str();
    const auto found = kernels().find(name);
    if (found == kernels().end()) fail("no kernel has this name");
    const Kernel& kernel = found->second;
    if (kernel.sizes != std::vector<std::size_t>{sizeof(Args)...}) fail("the arguments do not fit the kernel");
    void* pointers[] = {&args...};
    launch(name.c_str(), blocks, kernel.threads, shared, [&] { kernel.call(pointers); });
}

}  // namespace emulate
